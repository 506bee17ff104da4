"""The agent's endpoints: what the program on the VPS may do, from its enrolment to its end."""

from uuid import UUID, uuid4

import psycopg
import pytest

from events import commands as c
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api
from tests.enrolling_agent import NOW_MS, Agent, address_of, agent_fixture, execute, plan_server, stream_version
from tests.instance_fixtures import shared_api_fixture, shared_owner_conn_fixture

__all__ = ["agent_fixture", "shared_api_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_agent_enrols_gets_its_secrets_and_sends_callbacks_and_heartbeats(api: Api, agent: Agent) -> None:
    enrolled = await agent.enroll()
    first, again = await agent.secrets(), await agent.secrets()
    secrets = first.json()
    agent.key = secrets["agent_key"]
    acknowledged = await agent.acknowledge(secrets["key_id"])
    told = [await agent.callback(1), await agent.callback(2, "enrolled"), await agent.callback(2, "enrolled")]
    beat = await agent.heartbeat()

    assert enrolled.json() == {"instance_id": str(agent.instance_id), "attempt": 1, "boot_id": str(agent.boot_id)}
    assert first.status_code == 200
    assert again.json() == secrets
    key_id = UUID(secrets["key_id"])
    assert secrets["agent_key"] == tokens.agent_key(MASTER_KEY, agent.instance_id, key_id)
    assert secrets["control_token"] == tokens.control_token(MASTER_KEY, agent.instance_id, key_id)
    assert secrets["listen"] == {"host": address_of(agent.instance_id), "port": 7400}
    assert secrets["heartbeat_interval_s"] == 15
    assert (secrets["runtime"]["type"], secrets["runtime"]["agent_name"]) == ("expressclaw", "Ada")
    assert acknowledged.status_code == 200
    assert [answer.json() for answer in told] == [
        {"seq": 1, "duplicate": False},
        {"seq": 2, "duplicate": False},
        {"seq": 2, "duplicate": True},
    ]
    assert beat.json() == {"config_version": secrets["config_version"], "heartbeat_interval_s": 15}
    logs = (await api.client.get(f"/v1/instances/{agent.instance_id}/logs", headers=api.token())).json()
    assert [line["stage"] for line in logs["logs"]][-2:] == ["booted", "enrolled"]


async def test_a_callback_can_acknowledge_the_key_that_authenticates_it_and_no_other(api: Api, agent: Agent) -> None:
    await agent.enroll()
    secrets = (await agent.secrets()).json()
    agent.key = secrets["agent_key"]
    plain, of_another = await agent.callback(1), await agent.callback(2, key_id=str(uuid4()))
    still_given = await agent.secrets()

    again = await agent.callback(1, key_id=secrets["key_id"])

    assert (plain.status_code, still_given.status_code) == (200, 200)
    assert (of_another.status_code, of_another.json()) == (409, {"detail": "Another key is in force"})
    assert again.json() == {"seq": 1, "duplicate": True}
    assert (await agent.secrets()).status_code == 409
    assert (await agent.acknowledge(secrets["key_id"])).status_code == 200


async def test_the_runtime_status_shows_the_last_heartbeat(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await agent.heartbeat(error={"code": "model_unreachable", "message": "No answer"})

    runtime = (await api.client.get(f"/v1/instances/{agent.instance_id}/runtime", headers=api.token())).json()

    assert (runtime["active_connections"], runtime["uptime_seconds"], runtime["node_version"]) == (2, 5, "22")
    assert runtime["skills_loaded"] == ["notes"]
    assert (runtime["error_code"], runtime["error_message"]) == ("model_unreachable", "No answer")
    assert runtime["last_heartbeat"] is not None
    assert (runtime["openclaw_version"], runtime["agent_version"]) == (None, "1")


async def test_a_later_boot_of_an_agent_can_enrol_and_the_former_boot_gets_410(agent: Agent) -> None:
    await agent.get_ready()
    key_id = (tokens.parse_agent_key(agent.key) or pytest.fail("a key")).key_id
    await agent.callback(1)
    later = uuid4()

    again = await agent.enroll(boot_id=str(later))
    late = [
        await agent.callback(2),
        await agent.heartbeat(),
        await agent.config(),
        await agent.acknowledge(str(key_id)),
    ]
    agent.boot_id = later
    fresh = [await agent.callback(1), await agent.heartbeat(), await agent.config()]

    assert again.status_code == 200
    assert [answer.status_code for answer in late] == [410] * 4
    assert [answer.status_code for answer in fresh] == [200] * 3
    assert fresh[0].json() == {"seq": 1, "duplicate": False}


@pytest.mark.parametrize("enrolled_since", [True, False], ids=["replaced", "never enrolled"])
async def test_a_heartbeat_of_a_replaced_or_unknown_boot_is_refused_and_not_recorded(
    api: Api, agent: Agent, *, enrolled_since: bool
) -> None:
    await agent.get_ready()
    if enrolled_since:
        former, agent.boot_id = agent.boot_id, uuid4()
        await agent.enroll()
    else:
        former = uuid4()
    await agent.heartbeat()
    before = (await api.client.get(f"/v1/instances/{agent.instance_id}/runtime", headers=api.token())).json()

    refused = await agent.heartbeat(boot_id=str(former), uptime_seconds=9_000, versions={"agent": "0"})

    runtime = (await api.client.get(f"/v1/instances/{agent.instance_id}/runtime", headers=api.token())).json()
    assert refused.status_code == 410
    assert runtime == before


async def test_usage_of_a_former_boot_is_accepted_after_another_boot_has_enrolled(agent: Agent) -> None:
    await agent.get_ready()
    ledger_id = uuid4()
    await agent.usage(ledger_id, 1)
    former, agent.boot_id = agent.boot_id, uuid4()
    await agent.enroll()
    agent.boot_id = former

    answers = [await agent.usage(ledger_id, 2), await agent.usage(ledger_id, 2)]

    assert [answer.json() for answer in answers] == [{"seq": 2, "duplicate": False}, {"seq": 2, "duplicate": True}]


async def test_enrolling_another_key_with_the_same_token_is_a_conflict_and_an_alarm(api: Api, agent: Agent) -> None:
    await agent.enroll()
    thief = Agent(api, agent.instance_id, agent.token)

    stolen = await thief.enroll()

    assert stolen.status_code == 409
    assert (await thief.secrets()).status_code == 401
    assert (await agent.enroll()).status_code == 200
    logs = (await api.client.get(f"/v1/instances/{agent.instance_id}/logs", headers=api.token())).json()
    assert logs["logs"][-1]["level"] == "error"


async def test_acknowledged_secrets_are_not_given_again(agent: Agent) -> None:
    await agent.get_ready()

    assert (await agent.secrets()).status_code == 409


async def test_a_gap_in_callbacks_is_refused_with_the_expected_number(agent: Agent) -> None:
    await agent.get_ready()
    await agent.callback(1)

    gap = await agent.callback(3)

    assert gap.status_code == 409
    assert gap.json()["expected_seq"] == 2


async def test_callbacks_sent_together_are_recorded_one_by_one_and_once(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    rest = [{"stage": stage, "level": "info", "message": stage} for stage in ("enrolled", "secrets", "configured")]

    first = await agent.callback(1, following=rest[:1])
    overlapping = await agent.callback(2, "enrolled", following=rest[1:])
    again = await agent.callback(2, "enrolled", following=rest[1:])
    gap = await agent.callback(6, following=rest)

    assert [answer.json() for answer in (first, overlapping, again)] == [
        {"seq": 2, "duplicate": False},
        {"seq": 4, "duplicate": False},
        {"seq": 4, "duplicate": True},
    ]
    assert (gap.status_code, gap.json()["expected_seq"]) == (409, 5)
    logs = (await api.client.get(f"/v1/instances/{agent.instance_id}/logs", headers=api.token())).json()
    assert [line["stage"] for line in logs["logs"]][-4:] == ["booted", "enrolled", "secrets", "configured"]


async def test_an_agent_drained_by_a_deletion_gets_410_and_records_nothing(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await api.client.delete(f"/v1/instances/{agent.instance_id}", headers=api.token())
    for step in ("key_revoked", "drained"):
        await execute(api, agent.instance_id, c.RecordTeardownStep(at_ms=NOW_MS, step=step))
    version = await stream_version(api, agent)

    answers = [
        await agent.enroll(),
        await agent.secrets(),
        await agent.callback(1),
        await agent.heartbeat(),
    ]

    assert [answer.status_code for answer in answers] == [410] * 4
    assert await stream_version(api, agent) == version


async def test_an_agent_being_drained_may_only_do_what_it_needs_to_report_usage(api: Api, agent: Agent) -> None:
    ledger_id = uuid4()
    await agent.get_ready()
    await execute(api, agent.instance_id, c.RotateAgentKey(at_ms=NOW_MS))
    await api.client.delete(f"/v1/instances/{agent.instance_id}", headers=api.token())
    await execute(api, agent.instance_id, c.RecordTeardownStep(at_ms=NOW_MS, step="key_revoked"))

    refused = await agent.usage(ledger_id, 1)
    agent.boot_id = uuid4()
    enrolled, secrets = await agent.enroll(), await agent.secrets()
    agent.key = secrets.json()["agent_key"]
    taken = [enrolled, secrets, await agent.acknowledge(secrets.json()["key_id"]), await agent.usage(ledger_id, 1)]
    waiting = [await agent.callback(1), await agent.heartbeat(), await agent.config()]
    await execute(api, agent.instance_id, c.RecordTeardownStep(at_ms=NOW_MS, step="drained"))
    over = [await agent.secrets(), await agent.usage(ledger_id, 2), await agent.callback(1)]

    assert refused.status_code == 401
    assert [answer.status_code for answer in taken] == [200] * 4
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in waiting] == [(503, "2")] * 3
    assert [answer.status_code for answer in over] == [410] * 3


async def test_a_callback_overtaken_by_a_deletion_gets_503_with_retry_after(
    api: Api, agent: Agent, owner_conn: psycopg.AsyncConnection
) -> None:
    await agent.get_ready()
    await api.client.delete(f"/v1/instances/{agent.instance_id}", headers=api.token())
    # As it was when the report's key was looked at.
    await owner_conn.execute("UPDATE instance SET status = 'provisioning' WHERE id = %s", (agent.instance_id,))

    answer = await agent.callback(1)

    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "2")


async def test_the_agent_of_an_older_attempt_is_refused(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await execute(api, agent.instance_id, c.FailAttempt(at_ms=NOW_MS, attempt=1, code="boot_timeout", retryable=True))
    await execute(api, agent.instance_id, c.RecordServerDiscarded(at_ms=NOW_MS, attempt=1))
    token = await plan_server(api, agent.instance_id, attempt=2)

    late = [await agent.enroll(), await agent.secrets()]
    callback, heartbeat = await agent.callback(1), await agent.heartbeat()
    newer = await Agent(api, agent.instance_id, token, attempt=2).get_ready()

    assert [answer.status_code for answer in late] == [410, 410]
    # Its key is no longer in force; asking for another is how it learns that it is over.
    assert (callback.status_code, heartbeat.status_code) == (401, 401)
    assert (await newer.callback(1)).status_code == 200
