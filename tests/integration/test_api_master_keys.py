"""Two API processes while the master key is replaced: one still has the old key, and one makes everything with the new one."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from events.commands import RotateAgentKey
from hydracore import tokens
from tests import lifecycle
from tests.api_server import MASTER_KEY, Api, running_api
from tests.instance_fixtures import (
    KEY_ID,
    RunningInstance,
    execute_commands,
    free_host,
    request_instance,
    running_instance,
)

NEW = bytes(range(1, 33))
ORDER = {"region_id": "local", "tier_id": "starter", "idempotency_key": "once"}
MISMATCH = {"detail": "another request", "code": "idempotency_mismatch"}


class Both(NamedTuple):
    old: Api
    new: Api


class NewAgent(NamedTuple):
    """One that has enrolled, and asks for its secrets."""

    instance_id: UUID
    signing: Ed25519PrivateKey

    @classmethod
    async def enrolled(cls, api: Api) -> Self:
        signing = Ed25519PrivateKey.generate()
        public = b64encode(signing.public_key().public_bytes_raw()).decode()
        instance_id = await request_instance(api)
        await execute_commands(
            api,
            instance_id,
            lifecycle.plan(vpn_ip=free_host()),
            lifecycle.created(),
            lifecycle.enrol(signing_key=public),
        )
        return cls(instance_id, signing)

    async def ask_secrets(self, api: Api) -> httpx.Response:
        body = msgspec.json.encode({"instance_id": self.instance_id, "attempt": 1, "boot_id": lifecycle.BOOT})
        signature = b64encode(self.signing.sign(body)).decode()
        return await api.client.post("/v1/agent/secrets", content=body, headers={"X-Agent-Signature": signature})

    async def secrets(self, api: Api) -> dict[str, Any]:
        answer = await self.ask_secrets(api)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def both(database_url: str, redis_url: str) -> AsyncGenerator[Both]:
    async with (
        running_api(database_url, redis_url, master_keys_former=(NEW,)) as old,
        running_api(database_url, redis_url, master_key=NEW, master_keys_former=(MASTER_KEY,)) as new,
    ):
        yield Both(old, new)


def from_new(both: Both, instance: RunningInstance) -> RunningInstance:
    return instance._replace(api=both.new)


@pytest.mark.parametrize("first", ["old", "new"])
async def test_both_processes_recognize_a_repeated_create_and_refuse_a_changed_one(both: Both, first: str) -> None:
    apis = (both.old, both.new) if first == "old" else (both.new, both.old)
    headers = both.old.token(email="ann@example.com")

    made, again, *others = [
        await api.client.post("/v1/instances", json=ORDER | change, headers=headers)
        for api, change in (
            (apis[0], {}),
            (apis[1], {}),
            (apis[1], {"agent_name": "Bo"}),
            (apis[0], {"agent_name": "Bo"}),
        )
    ]
    listed = [await api.client.get("/v1/instances", headers=headers) for api in apis]

    assert (made.status_code, again.status_code, again.json()) == (202, 202, made.json())
    assert [answer.status_code for answer in others] == [409, 409]
    assert listed[0].json() == listed[1].json()
    assert "ann@example.com" in listed[0].text


async def test_secrets_issued_with_the_old_key_are_given_again_and_new_ones_use_the_new_key(both: Both) -> None:
    agent = await NewAgent.enrolled(both.old)
    instance_id = agent.instance_id

    issued = await agent.secrets(both.old)
    again = await agent.secrets(both.new)
    taken = await acknowledge(both.new, issued)
    await execute_commands(both.new, instance_id, RotateAgentKey(at_ms=lifecycle.NOW_MS))
    revoked = await acknowledge(both.new, issued)
    fresh = await agent.secrets(both.new)
    by_old_process = await acknowledge(both.old, fresh)

    assert again == issued
    assert (taken.status_code, revoked.status_code, by_old_process.status_code) == (200, 401, 200)
    assert issued["agent_key"] == tokens.agent_key(MASTER_KEY, instance_id, UUID(issued["key_id"]))
    key_id = UUID(fresh["key_id"])
    assert fresh["agent_key"] == tokens.agent_key(NEW, instance_id, key_id)
    assert fresh["control_token"] == tokens.control_token(NEW, instance_id, key_id)


async def acknowledge(api: Api, secrets: dict[str, Any]) -> httpx.Response:
    body = {"boot_id": str(lifecycle.BOOT), "key_id": secrets["key_id"]}
    headers = {"Authorization": f"Bearer {secrets['agent_key']}"}
    return await api.client.post("/v1/agent/secrets/ack", json=body, headers=headers)


async def test_secrets_of_a_dropped_master_key_are_refused_with_a_warning_until_the_key_is_rotated(
    both: Both, database_url: str, redis_url: str
) -> None:
    agent = await NewAgent.enrolled(both.old)
    await agent.secrets(both.old)

    async with running_api(database_url, redis_url, master_key=NEW) as alone:
        with capture_logs() as lines:
            refused = [await agent.ask_secrets(alone) for _ in range(2)]
        await execute_commands(alone, agent.instance_id, RotateAgentKey(at_ms=lifecycle.NOW_MS))
        taken = await acknowledge(alone, await agent.secrets(alone))

    assert [answer.status_code for answer in refused] == [409, 409]
    told = [line["instance_id"] for line in lines if line["event"] == "agent_locked_out"]
    assert told == [str(agent.instance_id)]
    assert taken.status_code == 200


async def test_agent_keys_derived_from_a_dropped_or_forged_master_key_are_refused(
    both: Both, database_url: str, redis_url: str
) -> None:
    async with running_instance(both.old) as instance, running_api(database_url, redis_url, master_key=NEW) as alone:
        body = {"boot_id": str(lifecycle.BOOT)}
        keys = {
            "in force": tokens.agent_key(MASTER_KEY, instance.instance_id, KEY_ID),
            "of the same id": tokens.agent_key(NEW, instance.instance_id, KEY_ID),
            "never issued": tokens.agent_key(MASTER_KEY, instance.instance_id, uuid4()),
            "made up": tokens.agent_key(bytes(32), instance.instance_id, KEY_ID),
        }
        answers = {
            (api is alone, name): await api.client.post(
                "/v1/agent/config", json=body, headers={"Authorization": f"Bearer {key}"}
            )
            for api in (both.new, alone)
            for name, key in keys.items()
        }

        assert {which for which, answer in answers.items() if answer.status_code == 200} == {(False, "in force")}
        assert {answer.status_code for answer in answers.values()} == {200, 401}
        assert answers[True, "in force"].json() == {"detail": "The agent key is wrong"}


async def test_an_agent_key_of_another_master_key_cannot_report_usage_of_a_draining_instance(both: Both) -> None:
    async with running_instance(both.old) as instance:
        await execute_commands(both.old, instance.instance_id, lifecycle.delete(), lifecycle.teardown("key_revoked"))
        spent = {
            "at_ms": lifecycle.NOW_MS,
            "model": "m",
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "cost_usd": 1,
            "channel": "api",
        }
        usage = {"boot_id": str(lifecycle.BOOT), "ledger_id": str(uuid4()), "seq": 1, "entries": [spent]}
        answers = [
            await both.old.client.post(
                "/v1/agent/usage",
                json=usage,
                headers={"Authorization": f"Bearer {tokens.agent_key(master_key, instance.instance_id, KEY_ID)}"},
            )
            for master_key in (NEW, MASTER_KEY)
        ]

    assert [answer.status_code for answer in answers] == [410, 200]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_staff_keep_their_conversations_and_a_repeated_chat_is_recognized(both: Both, accept: str) -> None:
    staff = both.old.token(user="root", role="admin") | {"Accept": accept}
    keyed = staff | {"Idempotency-Key": "once"}
    async with running_instance(both.old) as instance:
        await instance.ask("POST", "/chat", {"message": "Hello"}, headers=keyed)
        begun = instance.agent.calls[-1].body["conversation_id"]
        instance.agent.script("/api/chat", 409, MISMATCH)
        repeated = await from_new(both, instance).ask("POST", "/chat", {"message": "Hello"}, headers=keyed)
        names = [call.body["conversation_id"] for call in instance.agent.calls_of("/api/chat")]
        instance.agent.script("/api/chat", 409, MISMATCH)
        instance.agent.script("/api/chat", 409, MISMATCH)
        other = await from_new(both, instance).ask("POST", "/chat", {"message": "Bye"}, headers=keyed)
        theirs = {"message": "Hello", "conversation_id": begun}
        goes_on = await from_new(both, instance).ask("POST", "/chat", theirs, headers=staff)

    assert names == [begun, names[1], begun]
    assert names[1] != begun
    assert [answer.status_code for answer in (repeated, other, goes_on)] == [200, 409, 200]
