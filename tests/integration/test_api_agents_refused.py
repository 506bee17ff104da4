"""The agent's endpoints, closed: wrong tokens and keys, strangers, malformed requests, and secrets that stay secret."""

import json
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from events import commands as c
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api, b64
from tests.enrolling_agent import NOW_MS, Agent, agent_fixture, execute, new_instance, plan_server, stream_version
from tests.instance_fixtures import shared_api_fixture, shared_owner_conn_fixture

__all__ = ["agent_fixture", "shared_api_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_enrolment_with_a_wrong_token_is_refused_and_writes_nothing(api: Api, agent: Agent) -> None:
    version = await stream_version(api, agent)
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
    of_unknown = tokens.enrol_token(MASTER_KEY, unknown, 1, "nonce")
    answers.append(await agent.enroll(instance_id=str(unknown), token=of_unknown))

    assert [answer.status_code for answer in answers] == [401] * len(answers)
    assert await stream_version(api, agent) == version


async def test_a_forged_token_gets_the_same_answer_whether_or_not_the_instance_exists(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    await execute(api, agent.instance_id, c.FailAttempt(at_ms=NOW_MS, attempt=1, code="boot_timeout", retryable=True))
    await execute(api, agent.instance_id, c.RecordServerDiscarded(at_ms=NOW_MS, attempt=1))
    await plan_server(api, agent.instance_id, attempt=2)
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


async def test_an_expired_enrol_token_is_refused(api: Api) -> None:
    instance_id = await new_instance(api)
    agent = Agent(api, instance_id, await plan_server(api, instance_id, expires_ms=NOW_MS - 10**12))

    assert (await agent.enroll()).status_code == 401


async def test_secrets_are_given_only_to_the_holder_of_the_private_key(api: Api, agent: Agent) -> None:
    await agent.enroll()
    version = await stream_version(api, agent)

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
    assert await stream_version(api, agent) == version
    assert (await agent.secrets(boot_id=str(uuid4()))).status_code == 410


async def test_a_signature_with_characters_outside_base64_is_refused(agent: Agent) -> None:
    await agent.enroll()
    raw = json.dumps({"instance_id": str(agent.instance_id), "attempt": 1, "boot_id": str(agent.boot_id)}).encode()
    signature = b64(agent.signing.sign(raw))

    answers = [
        await agent.client.post("/v1/agent/secrets", content=raw, headers={"X-Agent-Signature": sent})
        for sent in (f"{signature[:8]}!{signature[8:]}", signature)
    ]

    assert [answer.status_code for answer in answers] == [401, 200]


async def test_agent_keys_that_are_not_in_force_are_refused(api: Api, agent: Agent) -> None:
    await agent.get_ready()
    version = await stream_version(api, agent)
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
    assert await stream_version(api, agent) == version


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
    version = await stream_version(api, agent)

    call: dict[str, Any] = {"seq": 1} | changes
    answer = await agent.callback(**call)

    assert answer.status_code == 422
    assert await stream_version(api, agent) == version


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
