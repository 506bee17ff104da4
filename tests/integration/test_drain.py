"""A deletion lets open chats end, and their cost is in the log before the server is deleted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest

from events import commands as c
from hydracore import tokens
from hydracore.transport import EMPTY_TRUST_STORE
from tests.modelsim_fixtures import ModelSim, running_modelsim
from tests.stack import Stack
from tests.waiting import PATIENCE_S, until
from workers.advance import advance
from workers.deps import Deps

HOUR_MS = 3_600_000


class Chatty(NamedTuple):
    """A running instance with its real agent, and the models behind it."""

    stack: Stack
    models: ModelSim
    instance_id: UUID
    http: httpx.AsyncClient

    async def chat(self, message: str) -> dict[str, Any]:
        """The last event of a streamed chat, which must be a complete answer."""
        name, answer = await self.ending(message)
        assert name == "done", answer
        return answer

    async def ending(self, message: str) -> tuple[str, dict[str, Any]]:
        """The last event of a streamed chat."""
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {self.stack.token}"}
        body = {"message": message, "conversation_id": "c-1"}
        answer = await self.http.post(f"/v1/instances/{self.instance_id}/chat", json=body, headers=headers)
        name, _, data = answer.text.strip().rpartition("\n\n")[2].partition("\ndata: ")
        return name.removeprefix("event: "), json.loads(data)

    async def are_open(self, count: int) -> bool:
        runtime = await self.stack.ask("GET", f"/v1/instances/{self.instance_id}/runtime")
        return runtime.json()["active_connections"] == count

    async def beat(self) -> httpx.Response:
        """The answer to the agent's next heartbeat."""
        (issued,) = (event for event in self.stack.events(self.instance_id) if event["type"] == "agent_key_issued")
        key = tokens.agent_key(self.stack.master_key, self.instance_id, UUID(issued["key_id"]))
        body = {"boot_id": str(self.instance_id), "uptime_seconds": 1, "active_connections": 0}
        body |= {"versions": {"agent": "1"}, "skills_loaded": [], "config_version": 1, "error": None}
        return await self.http.post("/v1/agent/heartbeat", json=body, headers={"Authorization": f"Bearer {key}"})

    def metered(self) -> list[Decimal]:
        """The cost of each model call, according to the log."""
        batches = [event for event in self.stack.events(self.instance_id) if event["type"] == "usage_recorded"]
        return [Decimal(entry["cost_usd"]) for batch in batches for entry in batch["entries"]]


@pytest.fixture
async def chatty(stack: Stack, tmp_path: Path) -> AsyncGenerator[Chatty]:
    async with (
        running_modelsim(tmp_path) as models,
        stack.restarted(model_base_url=models.base_url, model_api_key="sk-test"),
        httpx.AsyncClient(base_url=stack.url, trust_env=False, timeout=PATIENCE_S, verify=EMPTY_TRUST_STORE) as http,
    ):
        yield Chatty(stack, models, await stack.running(), http)


async def test_a_deletion_lets_open_chats_complete_and_meters_them_before_the_server_is_deleted(chatty: Chatty) -> None:
    stack, models, instance_id = chatty.stack, chatty.models, chatty.instance_id
    for word in ("first", "second"):
        await models.fault("hold", after_tokens=2, contains=word)
    # In one conversation, so that the second begins only when the first is over and its cost is on the way.
    chats = [asyncio.create_task(chatty.chat("The first"))]
    await models.until_requests(1)
    chats.append(asyncio.create_task(chatty.chat("The second")))
    await until(lambda: chatty.are_open(2))

    await stack.delete(instance_id)
    await until(lambda: "agent_key_revoked" in stack.types(instance_id))
    await models.release()
    await models.until_requests(2)
    await until(lambda: "usage_recorded" in stack.types(instance_id))
    refused = await chatty.beat()
    await models.release()
    answers = await asyncio.gather(*chats)
    await stack.until_status(instance_id, "deleted")

    assert [answer["message"] for answer in answers] == [
        "[scripted] You said: The first",
        "[scripted] You said: The second",
    ]
    assert chatty.metered() == [Decimal(answer["usage"]["cost_usd"]) for answer in answers]
    assert (refused.status_code, (await chatty.beat()).status_code) == (503, 410)
    assert [line for line in stack.output().splitlines() if "agent_must_wait" in line and str(instance_id) in line]
    stack.assert_no_server(instance_id)


async def test_a_deletion_cuts_chats_at_the_time_limit_and_meters_them_before_the_server_is_deleted(
    chatty: Chatty,
) -> None:
    stack, models, instance_id = chatty.stack, chatty.models, chatty.instance_id
    await models.fault("hold", after_tokens=2, contains="endless")
    chat = asyncio.create_task(chatty.ending("The endless"))
    await models.until_requests(1)
    stack.worker.kill()

    async with stack.deps() as deps:
        for command in (deletion(deps, hours=-1), key_revoked(deps, hours=-1)):
            await deps.store.execute(instance_id, command, deps.origin(instance_id))
        await advance(deps, instance_id)
    name, ended = await chat
    stack.worker.start()
    await stack.until_status(instance_id, "deleted")

    assert (name, ended["code"]) == ("error", "interrupted")
    assert len(chatty.metered()) == 1
    happened = [event.get("step", event["type"]) for event in stack.events(instance_id)]
    assert happened.index("usage_recorded") < happened.index("drained")
    stack.assert_no_server(instance_id)


async def test_open_chats_get_their_full_time_even_if_clocks_of_api_and_workers_disagree(
    chatty: Chatty, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, models = chatty.stack, chatty.models
    other = chatty._replace(instance_id=await stack.running())
    for word in ("first", "endless"):
        await models.fault("hold", after_tokens=2, contains=word)
    chats = [asyncio.create_task(chatty.chat("The first")), asyncio.create_task(other.chat("The endless"))]
    await models.until_requests(2)
    stack.worker.kill()

    async with stack.deps() as deps:
        # Requested by an API whose clock is an hour behind, or an hour ago while no worker ran.
        await deps.store.execute(chatty.instance_id, deletion(deps, hours=-1), deps.origin(chatty.instance_id))
        await advance(deps, chatty.instance_id)
        # Begun by a worker whose clock is an hour ahead.
        for command in (deletion(deps, hours=1), key_revoked(deps, hours=1)):
            await deps.store.execute(other.instance_id, command, deps.origin(other.instance_id))
        monkeypatch.setattr("workers.teardown.DRAIN_S_MAX", 0.1)
        await advance(deps, other.instance_id)
    assert stack.has_happened(other.instance_id, "teardown_step_done", step="drained")
    assert not stack.has_happened(chatty.instance_id, "teardown_step_done", step="drained")
    await models.release()
    answer = await chats[0]
    stack.worker.start()
    await stack.until_status(chatty.instance_id, "deleted")

    assert chatty.metered() == [Decimal(answer["usage"]["cost_usd"])]
    chats[1].cancel()


async def test_an_agent_that_does_not_answer_for_a_moment_still_completes_its_chats(
    chatty: Chatty, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, models, instance_id = chatty.stack, chatty.models, chatty.instance_id
    await models.fault("hold", after_tokens=2, contains="first")
    chat = asyncio.create_task(chatty.chat("The first"))
    await models.until_requests(1)
    stack.worker.kill()

    monkeypatch.setattr("workers.deps.AGENT_TIMEOUT_S", 0.2)
    async with stack.deps() as deps:
        for command in (deletion(deps, hours=0), key_revoked(deps, hours=0)):
            await deps.store.execute(instance_id, command, deps.origin(instance_id))
        stack.cloudsim.send(signal.SIGSTOP)
        try:
            await advance(deps, instance_id)
        finally:
            stack.cloudsim.send(signal.SIGCONT)
    assert not stack.has_happened(instance_id, "teardown_step_done", step="drained")
    await models.release()
    answer = await chat
    stack.worker.start()
    await stack.until_status(instance_id, "deleted")

    assert chatty.metered() == [Decimal(answer["usage"]["cost_usd"])]


async def test_an_agent_with_a_key_rotated_right_before_a_deletion_reports_the_cost_of_its_last_chat(
    chatty: Chatty,
) -> None:
    stack, models, instance_id = chatty.stack, chatty.models, chatty.instance_id
    await models.fault("hold", after_tokens=2, contains="first")
    chat = asyncio.create_task(chatty.chat("The first"))
    await models.until_requests(1)

    async with stack.deps() as deps:
        # Together, so that the agent sends no request in between.
        for command in (c.RotateAgentKey(at_ms=deps.now_ms()), deletion(deps, hours=0)):
            await deps.store.execute(instance_id, command, deps.origin(instance_id))
    await until(lambda: stack.has_happened(instance_id, "teardown_step_done", step="key_revoked"))
    await models.release()
    answer = await chat
    await stack.until_status(instance_id, "deleted")

    assert chatty.metered() == [Decimal(answer["usage"]["cost_usd"])]


def deletion(deps: Deps, *, hours: int) -> c.RequestDeletion:
    """As of a clock that is so many hours ahead of ours."""
    return c.RequestDeletion(at_ms=deps.now_ms() + hours * HOUR_MS, reason="requested")


def key_revoked(deps: Deps, *, hours: int) -> c.RecordTeardownStep:
    return c.RecordTeardownStep(at_ms=deps.now_ms() + hours * HOUR_MS, step="key_revoked")
