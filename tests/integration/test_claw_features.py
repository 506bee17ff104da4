"""Channels, integrations, workflows and long memories, as customers configure them, in a real agent."""

from __future__ import annotations

import asyncio
import json

from hydracore.agent.expressclaw.features import IGNORED_MAX
from hydracore.agent_client import AgentAddress, AgentClient
from hydracore.modelsim.embedding import BROKEN_MODEL
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import (
    Claw,
    agent_client_fixture,
    agent_fixture,
    claw_fixture,
    control_plane_fixture,
    document,
    modelsim_fixture,
    platform,
    push_config,
    until_connection,
)
from tests.fake_control_plane import FakeControlPlane
from tests.fake_telegram import TOKEN, running_telegram
from tests.modelsim_fixtures import ModelSim
from tests.raw_endpoint import raw_endpoint
from tests.waiting import PATIENCE_S

__all__ = ["agent_client_fixture", "agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_ignored_parts_of_a_configuration_are_named_in_the_answer_and_in_the_status(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    runtime = document(modelsim, platform=platform(channels={"slack": {}}, integrations=["calendar"]))
    runtime |= {
        "workflow_slugs": ["known", "gone"],
        "workflows": [{"slug": "known", "when": "asked", "steps": ["Go."]}],
    }

    answer = await push_config(claw, control_plane, runtime)
    status = await claw.status()

    paths = ["platform.channels.slack", "platform.integrations.0", "workflow_slugs.1"]
    assert [each["path"] for each in answer["ignored"]] == paths
    assert status["ignored"] == answer["ignored"]
    assert status["connections"] == {"telegram": "off", "slack": "unsupported", "integration:calendar": "unsupported"}
    assert status["workflows_loaded"] == ["known"]
    assert "1. Go." in (await claw.chat("What are your instructions?"))["message"]


async def test_a_status_stays_readable_however_much_of_a_configuration_is_ignored(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, agent_client: AgentClient
) -> None:
    # JSON takes six bytes for each of these characters.
    channels = {f"{number}{chr(1) * 200}": {} for number in range(300)}
    short = {f"c{number}": {} for number in range(16_000)}
    where = AgentAddress(*control_plane.listen, control_plane.control_token)

    await push_config(
        claw, control_plane, document(modelsim, platform=platform(channels=channels, integrations=[*channels]))
    )
    of_long_names = await agent_client.status(where)
    await push_config(claw, control_plane, document(modelsim, platform=platform(channels=short)))
    of_many_names = await agent_client.status(where)

    for status in (of_long_names, of_many_names):
        assert len(status.ignored) == len(status.connections) - 1 == IGNORED_MAX


async def test_a_telegram_channel_answers_only_allowed_users_and_tells_others_their_user_id(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    async with running_telegram() as telegram:
        channel = {"bot_token": TOKEN, "allowed_user_ids": [77]}
        runtime = document(modelsim, telegram={"bot_token": None, "base_url": telegram.url})
        runtime["platform"] = platform(channels={"telegram": channel})
        await push_config(claw, control_plane, runtime)
        await until_connection(claw, "telegram", "connected")

        await telegram.write("Hello", chat=5, sender=77)
        await telegram.write("Let me in", chat=6, sender=78)
        # A post in a channel has no sender, and so none who is allowed.
        await telegram.update({"message": {"chat": {"id": 7}, "text": "Let me in"}})
        sent = dict(await telegram.until_sent(3))
        runtime["platform"] = platform(channels={"telegram": {**channel, "enabled": False}})
        await push_config(claw, control_plane, runtime)

        assert sent[5] == f"{ANSWER_PREFIX} You said: Hello"
        assert "78" in sent[6]
        assert "unknown" in sent[7]
        await until_connection(claw, "telegram", "off")
    assert len(await modelsim.requests()) == 1


#: Turns of two messages each that push the first one out of the context of a model.
TURNS = 31


async def fill(claw: Claw) -> None:
    await claw.chat("My dog Bo eats salmon", "c-1")
    for number in range(TURNS):
        await claw.chat(f"Filler number {number}", "c-1")


async def test_messages_beyond_the_context_are_recalled_by_meaning_and_the_recall_is_metered(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)
    before = await claw.chat("Which salmon does the dog like?", "c-1")
    forgotten = (await modelsim.requests())[-1]["messages"]
    runtime = document(modelsim)
    runtime["model_policy"] |= {"embedding_model": "scripted-embedding"}
    runtime["prices"] = {
        **runtime["prices"],
        "scripted-embedding": {"input_usd_per_mtok": "10", "output_usd_per_mtok": "0"},
    }
    await push_config(claw, control_plane, runtime)
    assert (await claw.status())["connections"]["memory"] == "ready"

    await claw.chat("Which salmon does the dog like?", "c-1")
    recalled = (await modelsim.requests())[-1]["messages"]
    await claw.chat("Something else entirely", "c-1")
    unlike = (await modelsim.requests())[-1]["messages"]

    assert before["model"] == "first"
    assert "Bo eats salmon" not in json.dumps(forgotten)
    assert recalled[1]["role"] == "user"
    assert "user: My dog Bo eats salmon\n" in recalled[1]["content"]
    assert "Bo eats salmon" not in json.dumps(recalled[0]) + json.dumps(unlike)
    asked = (await modelsim.http.get("/_sim/embeddings")).json()["requests"]
    assert "My dog Bo eats salmon" in asked[0]["texts"]
    # Embeddings that were fetched once are on disk.
    assert len(asked[1]["texts"]) < len(asked[0]["texts"])
    await control_plane.until(lambda: any(each["model"] == "scripted-embedding" for each in control_plane.metered()))
    entry = next(each for each in control_plane.metered() if each["model"] == "scripted-embedding")
    assert (entry["completion_tokens"], entry["conversation_id"]) == (0, "c-1")
    assert float(entry["cost_usd"]) == entry["prompt_tokens"] / 100_000
    assert (await claw.status())["connections"]["memory"] == "connected"


async def test_a_failing_memory_does_not_keep_a_chat_from_its_answer(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)
    runtime = document(modelsim)
    runtime["model_policy"] |= {"embedding_model": BROKEN_MODEL}
    await push_config(claw, control_plane, runtime)

    answers = [await claw.chat(f"Hello {number}", "c-1") for number in range(2)]
    status = await claw.status()

    assert [answer["message"] for answer in answers] == [
        f"{ANSWER_PREFIX} You said: Hello 0",
        f"{ANSWER_PREFIX} You said: Hello 1",
    ]
    assert status["connections"]["memory"] == f"error: {BROKEN_MODEL}: the endpoint answered HTTP 503"
    assert status["error"]["code"] == "memory_failed"
    # A memory that failed is not asked for a while, so that not every chat waits for it.
    assert len((await modelsim.http.get("/_sim/embeddings")).json()["requests"]) == 1


async def test_a_recall_of_memories_that_is_cancelled_is_metered_by_estimate(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await fill(claw)

    async with raw_endpoint(stays_open=True) as silent:
        runtime = document(modelsim, model={"base_url": silent.base_url, "api_key": None})
        runtime["model_policy"] |= {"embedding_model": "scripted-embedding"}
        await push_config(claw, control_plane, runtime)
        asking = asyncio.create_task(claw.ask("Hello", "c-1"))
        async with asyncio.timeout(PATIENCE_S):
            await silent.asked.wait()
        asking.cancel()
        await control_plane.until(
            lambda: any(each["model"] == "scripted-embedding" for each in control_plane.metered())
        )

    entry = control_plane.metered()[-1]
    assert (entry["completion_tokens"], entry["conversation_id"]) == (0, "c-1")
    assert entry["prompt_tokens"] > 0
