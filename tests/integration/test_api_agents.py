"""The agent's endpoints: what the program on the VPS may do, and what somebody else may not."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from events import commands as c
from events.record import Origin
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api, b64
from tests.use_fixtures import shared_api_fixture, shared_owner_conn_fixture

__all__ = ["shared_api_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW_MS = 1_800_000_000_000


async def execute(api: Api, instance_id: UUID, command: c.AnyCommand) -> None:
    origin = Origin(actor="worker", command_id=uuid4(), correlation_id=uuid4())
    await api.parts.store.execute(instance_id, command, origin)


def address_of(instance_id: UUID) -> str:
    """Of its server; no two have the same."""
    second, third, fourth = instance_id.bytes[:3]
    return f"127.{64 + second % 64}.{third}.{1 + fourth % 254}"


async def intend(api: Api, instance_id: UUID, *, attempt: int = 1, expires_ms: int = 2 * NOW_MS) -> str:
    """Intend a server, as a worker does, and return the enrol token that its user_data would hold."""
    token = tokens.enrol_token(MASTER_KEY, instance_id, attempt, "nonce")
    command = c.PlanServer(
        at_ms=NOW_MS,
        attempt=attempt,
        provider="cloudsim",
        server_type="sim1",
        location="local1",
        image="debian-13",
        hostname=f"hc-{instance_id.hex[:8]}",
        vpn_ip=address_of(instance_id),
        server_name=f"hc-{instance_id}",
        enrol_nonce="nonce",
        enrol_token_hash=tokens.hash_token(token).hex(),
        enrol_expires_ms=expires_ms,
        deadline_ms=2 * NOW_MS,
    )
    await execute(api, instance_id, command)
    return token


class Agent:
    """A well-behaved agent, to be made to misbehave."""

    def __init__(self, api: Api, instance_id: UUID, token: str, *, attempt: int = 1) -> None:
        self.client, self.instance_id, self.token, self.attempt = api.client, instance_id, token, attempt
        self.boot_id = uuid4()
        self.signing = Ed25519PrivateKey.generate()
        self.keys = {
            "signing": b64(self.signing.public_key().public_bytes_raw()),
            "vpn": b64(X25519PrivateKey.generate().public_key().public_bytes_raw()),
        }
        self.key = ""

    async def enroll(self, **changes: Any) -> httpx.Response:
        body = {
            "instance_id": str(self.instance_id),
            "attempt": self.attempt,
            "token": self.token,
            "boot_id": str(self.boot_id),
            "public_keys": self.keys,
        }
        return await self.client.post("/v1/agent/enroll", json=body | changes)

    async def secrets(self, *, sign_with: Ed25519PrivateKey | None = None, **changes: Any) -> httpx.Response:
        body = {"instance_id": str(self.instance_id), "attempt": self.attempt, "boot_id": str(self.boot_id)}
        raw = json.dumps(body | changes).encode()
        signature = b64((sign_with or self.signing).sign(raw))
        return await self.client.post("/v1/agent/secrets", content=raw, headers={"X-Agent-Signature": signature})

    async def acknowledge(self, key_id: str) -> httpx.Response:
        return await self._post("secrets/ack", {"boot_id": str(self.boot_id), "key_id": key_id})

    async def callback(self, seq: int, stage: str = "booted", **changes: Any) -> httpx.Response:
        body = {"boot_id": str(self.boot_id), "seq": seq, "stage": stage, "level": "info", "message": "hello"}
        return await self._post("callback", body | changes)

    async def heartbeat(self, **changes: Any) -> httpx.Response:
        body = {
            "boot_id": str(self.boot_id),
            "uptime_seconds": 5,
            "active_connections": 2,
            "versions": {"agent": "1", "openclaw": None, "node": "22"},
            "skills_loaded": ["notes"],
            "config_version": 1,
            "error": None,
        }
        return await self._post("heartbeat", body | changes)

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(f"/v1/agent/{path}", json=body, headers={"Authorization": f"Bearer {self.key}"})

    async def get_ready(self) -> "Agent":
        """Enrol, and have the secrets acknowledged."""
        assert (await self.enroll()).status_code == 200
        secrets = (await self.secrets()).json()
        self.key = secrets["agent_key"]
        assert (await self.acknowledge(secrets["key_id"])).status_code == 200
        return self


async def new_instance(api: Api) -> UUID:
    body = {"region_id": "local", "tier_id": "starter", "agent_name": "Ada"}
    answer = await api.client.post("/v1/instances", json=body, headers=api.token())
    return UUID(answer.json()["instance_id"])


@pytest_asyncio.fixture(loop_scope="module")
async def agent(api: Api) -> Agent:
    instance_id = await new_instance(api)
    return Agent(api, instance_id, await intend(api, instance_id))


async def versions_of(api: Api, agent: Agent) -> int:
    state = await api.parts.store.load(agent.instance_id)
    assert state is not None
    return state.version


async def test_an_agent_enrols_gets_its_secrets_and_tells_its_story(api: Api, agent: Agent) -> None:
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
    assert beat.json() == {"config_version": secrets["config_version"]}
    logs = (await api.client.get(f"/v1/instances/{agent.instance_id}/logs", headers=api.token())).json()
    assert [line["stage"] for line in logs["logs"]][-2:] == ["booted", "enrolled"]


async def test_a_callback_may_acknowledge_the_key_that_it_shows_and_no_other(api: Api, agent: Agent) -> None:
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


async def test_what_a_heartbeat_said_shows_in_the_runtime_status(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await agent.heartbeat(error={"code": "model_unreachable", "message": "No answer"})

    runtime = (await api.client.get(f"/v1/instances/{agent.instance_id}/runtime", headers=api.token())).json()

    assert (runtime["active_connections"], runtime["uptime_seconds"], runtime["node_version"]) == (2, 5, "22")
    assert runtime["skills_loaded"] == ["notes"]
    assert (runtime["error_code"], runtime["error_message"]) == ("model_unreachable", "No answer")
    assert runtime["last_heartbeat"] is not None
    assert (runtime["openclaw_version"], runtime["agent_version"]) == (None, "1")


async def test_a_later_boot_of_the_same_agent_enrols_again_and_the_former_must_stop(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await agent.callback(1)
    former, agent.boot_id = agent.boot_id, uuid4()

    again = await agent.enroll()
    late = await agent.callback(2, boot_id=str(former))
    fresh = await agent.callback(1)

    assert again.status_code == 200
    assert late.status_code == 410
    assert fresh.json() == {"seq": 1, "duplicate": False}


async def test_another_key_on_the_same_token_is_a_conflict_and_an_alarm(api: Api, agent: Agent) -> None:
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


async def test_a_gap_is_told_with_what_is_expected(agent: Agent) -> None:
    await agent.get_ready()
    await agent.callback(1)

    gap = await agent.callback(3)

    assert gap.status_code == 409
    assert gap.json()["expected_seq"] == 2


async def test_what_is_told_together_counts_one_by_one_and_once(api: Api, agent: Agent) -> None:
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


async def test_nobody_enrols_with_a_wrong_or_late_token(api: Api, agent: Agent) -> None:
    version = await versions_of(api, agent)
    other = await new_instance(api)
    forged = tokens.enrol_token(bytes(32), agent.instance_id, 1, "nonce")
    of_other = tokens.enrol_token(MASTER_KEY, other, 1, "nonce")

    answers = [
        await agent.enroll(token=forged),
        await agent.enroll(token=of_other),
        await agent.enroll(token="nonsense"),
        await agent.enroll(attempt=2),
        await agent.enroll(instance_id=str(uuid4())),
    ]
    unknown = uuid4()
    of_nobody = tokens.enrol_token(MASTER_KEY, unknown, 1, "nonce")
    answers.append(await agent.enroll(instance_id=str(unknown), token=of_nobody))

    assert [answer.status_code for answer in answers] == [401] * len(answers)
    assert await versions_of(api, agent) == version


async def test_a_stranger_does_not_learn_whether_there_is_an_instance_or_is_no_more(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await execute(api, agent.instance_id, c.FailAttempt(at_ms=NOW_MS, attempt=1, code="boot_timeout", retryable=True))
    await execute(api, agent.instance_id, c.RecordServerDiscarded(at_ms=NOW_MS, attempt=1))
    await intend(api, agent.instance_id, attempt=2)
    gone = await new_instance(api)
    await api.client.delete(f"/v1/instances/{gone}", headers=api.token())

    told: set[tuple[int, str]] = set()
    for instance_id in (agent.instance_id, gone, uuid4()):
        for attempt in (1, 2, 3):
            forged = tokens.enrol_token(bytes(32), instance_id, attempt, "nonce")
            stranger = Agent(api, instance_id, forged, attempt=attempt)
            told |= {
                (answer.status_code, answer.text) for answer in [await stranger.enroll(), await stranger.secrets()]
            }

    assert told == {
        (401, '{"detail":"The enrol token is wrong or has expired"}'),
        (401, '{"detail":"The signature is wrong"}'),
    }


async def test_a_token_cannot_be_used_after_its_time(api: Api) -> None:
    instance_id = await new_instance(api)
    agent = Agent(api, instance_id, await intend(api, instance_id, expires_ms=NOW_MS - 10**12))

    assert (await agent.enroll()).status_code == 401


async def test_secrets_are_for_the_holder_of_the_private_key_alone(api: Api, agent: Agent) -> None:
    await agent.enroll()
    version = await versions_of(api, agent)

    answers = [
        await agent.secrets(sign_with=Ed25519PrivateKey.generate()),
        await agent.client.post(
            "/v1/agent/secrets",
            json={"instance_id": str(agent.instance_id), "attempt": 1, "boot_id": str(agent.boot_id)},
            headers={"X-Agent-Signature": "not base64!"},
        ),
        await agent.client.post(
            "/v1/agent/secrets",
            json={"instance_id": str(agent.instance_id), "attempt": 1, "boot_id": str(agent.boot_id)},
        ),
        await agent.secrets(instance_id=str(uuid4())),
    ]

    assert [answer.status_code for answer in answers] == [401] * len(answers)
    assert await versions_of(api, agent) == version
    assert (await agent.secrets(boot_id=str(uuid4()))).status_code == 410


async def test_keys_that_are_not_in_force_open_nothing(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    version = await versions_of(api, agent)
    genuine = agent.key
    instance_id, key_id = tokens.parse_agent_key(genuine) or pytest.fail("a key")
    for wrong in (
        "nonsense",
        genuine[:-1] + ("A" if genuine[-1] != "A" else "B"),
        tokens.agent_key(bytes(32), instance_id, key_id),
        tokens.agent_key(MASTER_KEY, instance_id, uuid4()),
        tokens.agent_key(MASTER_KEY, uuid4(), key_id),
        tokens.control_token(MASTER_KEY, instance_id, key_id),
    ):
        agent.key = wrong
        answers = [await agent.callback(1), await agent.heartbeat(), await agent.acknowledge(str(key_id))]
        assert [answer.status_code for answer in answers] == [401] * 3, wrong
    agent.key = genuine
    assert (await agent.acknowledge(str(uuid4()))).status_code == 409
    assert await versions_of(api, agent) == version


async def test_after_a_deletion_everything_says_stop(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await api.client.delete(f"/v1/instances/{agent.instance_id}", headers=api.token())
    for step in ("key_revoked", "drained"):
        await execute(api, agent.instance_id, c.RecordTeardownStep(at_ms=NOW_MS, step=step))
    version = await versions_of(api, agent)

    answers = [
        await agent.enroll(),
        await agent.secrets(),
        await agent.callback(1),
        await agent.heartbeat(),
    ]

    assert [answer.status_code for answer in answers] == [410] * 4
    assert await versions_of(api, agent) == version


async def test_the_agent_of_an_older_attempt_must_stop(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await execute(api, agent.instance_id, c.FailAttempt(at_ms=NOW_MS, attempt=1, code="boot_timeout", retryable=True))
    await execute(api, agent.instance_id, c.RecordServerDiscarded(at_ms=NOW_MS, attempt=1))
    token = await intend(api, agent.instance_id, attempt=2)

    late = [await agent.enroll(), await agent.secrets()]
    callback, heartbeat = await agent.callback(1), await agent.heartbeat()
    newer = await Agent(api, agent.instance_id, token, attempt=2).get_ready()

    assert [answer.status_code for answer in late] == [410, 410]
    # Its key is no longer in force; asking for another is how it learns that it is over.
    assert (callback.status_code, heartbeat.status_code) == (401, 401)
    assert (await newer.callback(1)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"attempt": 0}, ["attempt"]),
        ({"boot_id": "x"}, ["boot_id"]),
        ({"public_keys": {"signing": "short"}}, ["public_keys", "signing"]),
        ({"public_keys": None}, ["public_keys"]),
        ({"token": "x" * 257}, ["token"]),
    ],
    ids=str,
)
async def test_malformed_enrolments_are_refused(agent: Agent, changes: dict[str, Any], where: list[str]) -> None:
    answer = await agent.enroll(**changes)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *where]


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 0},
        {"seq": 2**31},
        {"stage": "asleep"},
        {"level": "debug"},
        {"message": "x" * 2001},
        {"message": "a\0"},
        {"boot_id": 5},
        {"following": [{"stage": "asleep", "level": "info", "message": ""}]},
        {"following": [{"stage": "booted", "level": "info", "message": ""}] * 101},
    ],
    ids=lambda changes: str(changes)[:40],
)
async def test_malformed_callbacks_are_refused_and_write_nothing(
    api: Api, agent: Agent, changes: dict[str, Any]
) -> None:
    await agent.get_ready()
    version = await versions_of(api, agent)

    call: dict[str, Any] = {"seq": 1} | changes
    answer = await agent.callback(**call)

    assert answer.status_code == 422
    assert await versions_of(api, agent) == version


@pytest.mark.parametrize(
    "changes",
    [
        {"uptime_seconds": -1},
        {"active_connections": "many"},
        {"versions": {}},
        {"skills_loaded": ["y"] * 257},
        {"skills_loaded": ["x" * 129]},
        {"error": {"code": "x" * 65, "message": ""}},
        {"config_version": 2**60},
    ],
    ids=lambda value: str(value)[:30],
)
async def test_malformed_heartbeats_are_refused(agent: Agent, changes: dict[str, Any]) -> None:
    await agent.get_ready()

    assert (await agent.heartbeat(**changes)).status_code == 422


async def test_no_secret_of_an_agent_stands_in_the_database(agent: Agent, owner_conn: psycopg.AsyncConnection) -> None:
    await agent.enroll()
    secrets = (await agent.secrets()).json()

    rows = await (
        await owner_conn.execute("SELECT row_to_json(e)::text || row_to_json(c)::text FROM event e, command c")
    ).fetchall()

    for secret in (agent.token, secrets["agent_key"], secrets["control_token"]):
        assert all(secret[-43:] not in row[0] for row in rows)
