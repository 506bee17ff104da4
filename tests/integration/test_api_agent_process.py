"""End to end: the API, a real agent process, and the scripted models behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest

from events.state import Instance
from hydracore import tokens
from projections.follower import Follower
from projections.usage_daily import UsageDaily
from tests.agent_process import AgentProcess
from tests.api_server import MASTER_KEY, Api, running_api
from tests.booting import boot_agent
from tests.instance_fixtures import execute_commands
from tests.lifecycle import mark_ready
from tests.modelsim_fixtures import ModelSim, running_modelsim
from tests.waiting import until

SSE = {"Accept": "text/event-stream"}


class Whole(NamedTuple):
    """A running instance of ann's with its agent."""

    api: Api
    instance_id: UUID
    agent: AgentProcess
    models: ModelSim

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.api.client.request(
            method,
            f"/v1/instances/{self.instance_id}{path}",
            json=body,
            headers={**self.api.token(), **headers},
            timeout=30,
        )

    async def chat(self, message: str, **fields: Any) -> dict[str, Any]:
        answer = await self.ask("POST", "/chat", {"message": message, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def state(self) -> Instance:
        state = await self.api.parts.store.load(self.instance_id)
        assert state is not None
        return state

    async def runs_version(self, version: int) -> bool:
        return (await self.ask("GET", "/runtime")).json()["config_version_running"] == version

    async def usage(self) -> dict[str, Any]:
        follower = Follower(self.api.parts.pool, UsageDaily())
        await follower.create_checkpoints()
        await follower.catch_up()
        return (await self.ask("GET", "/usage?days=2")).json()


@pytest.fixture
async def whole(database_url: str, redis_url: str, tmp_path: Path) -> AsyncGenerator[Whole]:
    async with (
        running_modelsim(tmp_path) as models,
        running_api(
            database_url, redis_url, model_base_url=models.base_url, model_api_key="sk-test", heartbeat_interval_s=0.2
        ) as api,
    ):
        instance_id, agent = await boot_agent(api, tmp_path)
        one = Whole(api, instance_id, agent, models)
        try:
            await until(lambda: healthy(one), seconds_max=40)
            await execute_commands(api, instance_id, mark_ready())
            yield one
        finally:
            agent.stop_for_good()
    assert "sk-test" not in agent.output()


async def healthy(one: Whole) -> bool:
    state = await one.state()
    assert one.agent.is_alive, one.agent.output()
    return state.agent is not None and state.agent.bootstrap_stage == "healthy"


async def streamed_in_two_parts(whole: Whole, message: str, conversation_id: str) -> tuple[str, dict[str, Any]]:
    """The text received while the model was held after three tokens, and the last event, after its release."""
    await whole.models.fault("hold", after_tokens=3)
    path = f"/v1/instances/{whole.instance_id}/chat"
    body = {"message": message, "conversation_id": conversation_id}
    headers = {**whole.api.token(), **SSE}
    async with whole.api.client.stream("POST", path, json=body, headers=headers, timeout=30) as answer:
        lines = answer.aiter_lines()
        said = await next_text(lines)
        while len(said.split()) < 3:
            said += await next_text(lines)
        early = said
        await whole.models.release()
        async for line in lines:
            if line == "event: done":
                done = json.loads((await anext(lines)).removeprefix("data: "))
                assert said == done["message"], "the pieces are the whole"
                return early, done
            if line.startswith("data: "):
                said += json.loads(line.removeprefix("data: "))["text"]
    raise AssertionError(f"the stream ended after {said!r}")


async def next_text(lines: AsyncIterator[str]) -> str:
    async for line in lines:
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))["text"]
    raise AssertionError("the stream ended without a word")


async def test_a_customer_chats_whole_and_streamed_and_reads_the_conversation(whole: Whole) -> None:
    first = await whole.chat("My dog is called Bo")
    conversation = first["conversation_id"]
    early, done = await streamed_in_two_parts(whole, "What did I say before?", conversation)
    listed = (await whole.ask("GET", "/conversations?limit=5")).json()
    detail = (await whole.ask("GET", f"/conversations/{conversation}")).json()

    assert first["message"] == "[scripted] You said: My dog is called Bo"
    assert first["model"] == "gpt-4.1-mini"
    assert done["message"] == "[scripted] Before that you said: My dog is called Bo"
    assert done["message"].startswith(early)
    assert [each["id"] for each in listed["conversations"]] == [conversation]
    assert [message["role"] for message in detail["messages"]] == ["user", "assistant"] * 2
    assert detail["messages"][-1]["content"] == done["message"]
    (first_request, *_) = await whole.models.until_requests(2)
    assert first_request["messages"][0]["role"] == "system"


async def test_a_changed_prompt_takes_effect_at_once(whole: Whole) -> None:
    changed = await whole.ask("POST", "/config", {"system_prompt": "Speak like a pirate", "agent_name": "Bones"})
    answer = await whole.chat("What are your instructions?")
    shown = (await whole.ask("GET", "/config")).json()

    assert changed.json()["applied"] is True, changed.text
    assert "Speak like a pirate" in answer["message"]
    assert (shown["applied"], shown["running"]["system_prompt"]) == (True, "Speak like a pirate")
    assert not {"model", "prices"} & shown["running"].keys()
    assert "sk-test" not in json.dumps(shown)


async def test_a_change_made_while_the_agent_is_down_takes_effect_when_it_is_back(whole: Whole) -> None:
    await whole.agent.kill()
    changed = await whole.ask("POST", "/config", {"system_prompt": "Speak in rhymes"})
    away = await whole.ask("POST", "/chat", {"message": "Hello"})
    whole.agent.start()
    await until(lambda: whole.runs_version(2), seconds_max=40)

    assert (changed.status_code, changed.json()["applied"], away.status_code) == (200, False, 502)
    assert "Speak in rhymes" in (await whole.chat("What are your instructions?"))["message"]


async def test_usage_is_counted_once_and_a_spent_budget_refuses_chats(whole: Whole) -> None:
    answer = await whole.chat("Hello")

    async def is_counted() -> bool:
        return (await whole.usage())["total_requests"] == 1

    await until(is_counted)
    usage = await whole.usage()
    await whole.ask("PATCH", "/model-policy", {"budget_daily_usd": float(answer["usage"]["cost_usd"])})
    spent = [await whole.ask("POST", "/chat", {"message": "More"}, **headers) for headers in ({}, SSE)]
    # The agent keeps its own account: it does not wait for ours.
    by_the_agent = await whole.ask("POST", "/chat", {"message": "More"}, **{"Idempotency-Key": "k"})

    assert usage["total_cost_usd"] == answer["usage"]["cost_usd"]
    assert usage["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert usage["unique_end_users"] == 1
    assert [each.status_code for each in (*spent, by_the_agent)] == [402] * 3
    assert len(await whole.models.requests()) == 1


async def test_a_repeated_idempotency_key_does_not_ask_the_model_again(whole: Whole) -> None:
    key = {"Idempotency-Key": "once"}

    first = await whole.ask("POST", "/chat", {"message": "Hello"}, **key)
    again = await whole.ask("POST", "/chat", {"message": "Hello"}, **key)
    streamed = await whole.ask("POST", "/chat", {"message": "Hello"}, **key, **SSE)
    other = await whole.ask("POST", "/chat", {"message": "Goodbye"}, **key)

    assert first.json() == again.json()
    assert json.loads(streamed.text.rpartition("data: ")[2]) == first.json()
    assert other.status_code == 409
    assert len(await whole.models.requests()) == 1


async def test_a_client_that_disconnects_stops_the_model(whole: Whole) -> None:
    await whole.models.fault("hold", after_tokens=3)
    url = f"/v1/instances/{whole.instance_id}/chat"

    async with whole.api.client.stream(
        "POST", url, json={"message": "Count to 50"}, headers={**whole.api.token(), **SSE}
    ) as answer:
        await anext(answer.aiter_raw())

    await whole.models.until_requests(1, ended="left")


async def test_failing_models_are_answered_with_502_and_without_their_secret(whole: Whole) -> None:
    await whole.models.fault("status", status=500, times=None)

    failed = await whole.ask("POST", "/chat", {"message": "Hello"})
    streamed = await whole.ask("POST", "/chat", {"message": "Hello"}, **SSE)

    assert (failed.status_code, streamed.status_code) == (502, 502)
    assert failed.json()["detail"]
    assert "sk-test" not in failed.text + streamed.text


async def test_an_error_within_a_stream_is_its_last_event(whole: Whole) -> None:
    await whole.models.fault("cut", after_tokens=3, times=None)

    answer = await whole.ask("POST", "/chat", {"message": "Count to 20"}, **SSE)

    assert answer.text.strip().split("\n\n")[-1].startswith("event: error\n")


async def test_a_rotated_key_is_replaced_by_the_agent_itself(whole: Whole) -> None:
    before = (await whole.state()).agent
    assert before is not None
    assert before.key_id is not None
    old_key = tokens.agent_key(MASTER_KEY, whole.instance_id, before.key_id)

    rotated = await whole.api.client.post(
        f"/v1/instances/admin/{whole.instance_id}/rotate-key", headers=whole.api.token(user="root", role="admin")
    )
    refused = await whole.api.client.post(
        "/v1/agent/config", json={"boot_id": str(before.boot_id)}, headers={"Authorization": f"Bearer {old_key}"}
    )

    async def has_another() -> bool:
        agent = (await whole.state()).agent
        return agent is not None and agent.key_acknowledged and agent.key_id != before.key_id

    await until(has_another, seconds_max=40)
    assert (rotated.status_code, refused.status_code) == (200, 401)

    async def answers() -> bool:
        return (await whole.ask("POST", "/chat", {"message": "Hello"})).status_code == 200

    await until(answers)


async def test_updates_are_applied_with_a_restart_when_requested(whole: Whole) -> None:
    nothing = await whole.ask("POST", "/updates/apply", {"restart_agent": True})
    forced = await whole.ask("POST", "/updates/apply", {"restart_agent": True, "force": True})

    assert nothing.json()["status"] == "up_to_date"
    assert forced.json()["status"] == "applied", forced.text
    assert "restarted" in forced.json()["message"]
    assert (await whole.chat("Hello"))["message"] == "[scripted] You said: Hello"


async def test_enabled_skills_and_workflows_are_loaded_and_unknown_ones_are_reported(whole: Whole) -> None:
    before = (await whole.ask("GET", "/runtime")).json()
    wanted = {
        "skills": ["email-drafts", "no-such-skill"],
        "workflow_slugs": ["weekly-review", "gone", None, {"id": "weekly-review"}],
        "channels": {"slack": {"token": "xoxb"}},
    }
    enabled = await whole.ask("PATCH", "/platform-config", wanted)
    after = (await whole.ask("GET", "/runtime")).json()

    assert before["skills_loaded"] == []
    assert enabled.json()["skills"] == ["email-drafts", "no-such-skill"]
    # The workflow brings the skill that it takes.
    assert after["skills_loaded"] == ["email-drafts", "task-planning"]
    assert after["workflows_loaded"] == ["weekly-review"]
    assert after["connections"] == {"telegram": "off", "slack": "unsupported"}
    paths = ["platform.channels.slack", *(f"workflow_slugs.{which}" for which in (1, 2, 3)), "platform.skills.1"]
    assert [each["path"] for each in after["config_ignored"]] == paths
    assert (
        "does not use platform.channels.slack (this runtime does not support this channel); workflow_slugs.1"
        in (enabled.json()["message"])
    )
    assert (
        'Note on workflow_slugs: unknown: gone, null, {"id":"weekly-review"}; known: complaint'
        in enabled.json()["message"]
    )
    assert before["config_ignored"] == []
    assert "Workflow: Weekly review" in (await whole.chat("What are your instructions?"))["message"]


async def test_staff_begin_conversations_of_their_own(whole: Whole) -> None:
    admin = whole.api.token(user="root", role="admin")

    begun = await whole.ask("POST", "/chat", {"message": "Hello"}, **admin)
    conversation = begun.json()["conversation_id"]
    again = await whole.ask("POST", "/chat", {"message": "Before?", "conversation_id": conversation}, **admin)

    assert conversation.startswith("staff:")
    assert again.json()["message"] == "[scripted] Before that you said: Hello"


async def test_many_chats_at_once_are_all_answered(whole: Whole) -> None:
    answers = await asyncio.gather(*(whole.chat(f"Number {number}") for number in range(20)))

    assert [answer["message"] for answer in answers] == [f"[scripted] You said: Number {n}" for n in range(20)]
