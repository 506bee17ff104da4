"""Configurations are pushed or fetched, apply at once, survive restarts, and do not disturb open chats."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import pytest

from hydracore.agent_client import AgentAddress, AgentBadAnswer, AgentClient
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.agent_process import AgentProcess
from tests.claw_fixtures import (
    API_KEY,
    Claw,
    agent_client_fixture,
    agent_fixture,
    claw_fixture,
    connected,
    control_plane_fixture,
    document,
    joined_text,
    modelsim_fixture,
)
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.waiting import until

__all__ = ["agent_client_fixture", "agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def push(claw: Claw, version: int, runtime: dict[str, Any]) -> httpx.Response:
    return await claw.push(version, runtime)


async def first_words(events: AsyncGenerator[tuple[str, dict[str, Any]]]) -> str:
    return (await anext(events))[1]["text"]


async def test_a_pushed_configuration_applies_at_once_and_an_older_one_is_ignored(
    claw: Claw, modelsim: ModelSim
) -> None:
    changed = document(modelsim, system_prompt="The fifth.")

    answers = [await push(claw, 5, changed), await push(claw, 4, document(modelsim, system_prompt="The fourth."))]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"config_version": 5})] * 2
    assert "The fifth." in (await claw.chat("What are your instructions?"))["message"]
    assert (await claw.status())["config_version"] == 5


async def test_the_same_version_may_be_pushed_again_with_other_prices(claw: Claw, modelsim: ModelSim) -> None:
    free = {name: {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0"} for name in ("first", "second")}

    await push(claw, 3, document(modelsim, prices=free))

    assert (await claw.chat("Hello"))["usage"]["cost_usd"] == "0"


async def test_an_open_stream_continues_with_the_configuration_it_began_with(claw: Claw, modelsim: ModelSim) -> None:
    await modelsim.fault("hold", after_tokens=2)

    async with aclosing(claw.stream("Hello", "c-1")) as events:
        said = await first_words(events)
        changed = document(modelsim)
        changed["model_policy"]["primary"] = "second"
        assert (await push(claw, 4, changed)).json() == {"config_version": 4}
        assert (await claw.chat("Hello"))["model"] == "second"
        await modelsim.release()
        rest, (name, answer) = await joined_text(events)

    assert (name, answer["model"], said + rest) == ("done", "first", f"{ANSWER_PREFIX} You said: Hello")


async def test_an_unusable_configuration_is_refused_and_changes_nothing(claw: Claw, modelsim: ModelSim) -> None:
    wrong = document(modelsim, model={"base_url": "not-a-url", "api_key": "sk-other-0123456789"})

    answer = await push(claw, 9, wrong)

    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_request"
    assert "sk-other" not in answer.text
    assert (await claw.status())["config_version"] == 3
    assert (await claw.chat("Hello"))["model"] == "first"
    assert (await claw.http.put("/api/config", json={"config_version": "x"})).status_code == 422


async def test_a_configuration_pushed_while_no_runtime_runs_is_checked_and_not_reported_as_running(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim
) -> None:
    control_plane.runtime = {"type": "openclaw"}
    agent.start()
    await control_plane.until(lambda: any(told["level"] == "error" for told in control_plane.callbacks()))
    wrong = document(modelsim, model_policy={"temperature": "hot"})
    stored = (agent.state / "config.json").read_bytes()

    async with connected(control_plane) as claw:
        refused = await push(claw, 4, wrong)
        kept = (agent.state / "config.json").read_bytes()
        taken = await push(claw, 5, document(modelsim))
        await control_plane.until_healthy()
        shown = (await claw.http.get("/api/config")).json()

    assert (refused.status_code, kept) == (422, stored)
    assert (taken.status_code, taken.json()) == (200, {"config_version": None})
    assert (shown["config_version"], shown["agent_name"]) == (5, "Ada")


async def test_a_restarted_agent_runs_its_newest_configuration_or_fetches_it_if_the_file_is_damaged(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim
) -> None:
    control_plane.runtime = document(modelsim)
    agent.start()
    await control_plane.until_healthy()
    newest = document(modelsim, system_prompt="Pushed words.")
    async with connected(control_plane) as claw:
        await push(claw, 7, newest)
    config = agent.state / "config.json"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600

    await agent.kill()
    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()

    assert control_plane.heartbeats[-1]["config_version"] == 7
    async with connected(control_plane) as claw:
        assert "Pushed words." in (await claw.chat("What are your instructions?"))["message"]

    # A damaged file is replaced by the configuration that the control plane has.
    await agent.kill()
    config.write_bytes(b"{")
    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()
    assert control_plane.heartbeats[-1]["config_version"] == 3
    assert json.loads(config.read_bytes())["config_version"] == 3
    assert "Pushed words." not in agent.output()


async def test_the_current_configuration_is_shown_with_its_secrets_masked(claw: Claw, modelsim: ModelSim) -> None:
    platform = {
        "skills": ["email-drafts"],
        "integrations": [{"name": "crm", "api_key": "crm-0123456789"}],
        "channels": {"slack": {"bot_token": "short"}},
        "advanced": {},
    }
    telegram = {"bot_token": "1:telegram-secret-end1", "base_url": "http://127.0.0.1:1"}
    await push(claw, 4, document(modelsim, platform=platform, telegram=telegram))

    shown = (await claw.http.get("/api/config")).json()

    assert (shown["config_version"], shown["agent_name"]) == (4, "Ada")
    assert shown["model"] == {"base_url": modelsim.base_url, "api_key": f"****{API_KEY[-4:]}"}
    assert shown["telegram"]["bot_token"] == "****end1"
    assert shown["platform"]["integrations"] == [{"name": "crm", "api_key": "****6789"}]
    assert shown["platform"]["channels"] == {"slack": {"bot_token": "****"}}
    assert shown["model_policy"]["max_tokens"] == 500


# --- updates ---------------------------------------------------------------------------------------------------------


async def apply(claw: Claw, version: int, runtime: dict[str, Any], *, restart: bool) -> dict[str, Any]:
    body = {"config_version": version, "runtime": runtime, "restart": restart}
    answer = await claw.http.post("/api/updates/apply", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_updates_are_applied_without_a_restart(claw: Claw, modelsim: ModelSim) -> None:
    platform = {"skills": ["task-planning", "email-drafts", "task-planning"]}

    applied = await apply(claw, 4, document(modelsim, platform=platform), restart=False)

    assert applied == {
        "config_version": 4,
        "restarted": False,
        "drained": True,
        "skills_loaded": ["task-planning", "email-drafts"],
        "error": None,
    }


async def test_a_restart_lets_open_chats_end_and_refuses_new_ones_meanwhile(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=2)
    async with aclosing(claw.stream("Hello", "u-1")) as events:
        await first_words(events)
        applying = asyncio.create_task(apply(claw, 4, document(modelsim), restart=True))
        await until(lambda: refuses(claw))
        await modelsim.release()
        _, (name, _) = await joined_text(events)

    applied = await applying
    assert name == "done"
    assert (applied["restarted"], applied["drained"]) == (True, True)
    assert (await claw.chat("Hello"))["model"] == "first"
    assert (await claw.status())["healthy"]


async def refuses(claw: Claw) -> bool:
    answer = await claw.ask("Hello")
    return answer.status_code == 503 and answer.json()["code"] == "draining"


async def test_a_drain_lets_open_chats_end_refuses_new_ones_and_reports_unsent_usage(
    claw: Claw, control_plane: FakeControlPlane, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=2)
    telling = control_plane.hold("usage", "before")
    async with aclosing(claw.stream("Hello", "d-1")) as events:
        await first_words(events)
        drained = (await claw.http.post("/api/drain")).json()
        assert await claw.refused("Hello") == (503, "draining")
        await modelsim.release()
        _, (name, _) = await joined_text(events)

    await telling.reached.wait()
    untold = (await claw.http.post("/api/drain")).json()
    telling.released.set()
    await control_plane.until(lambda: bool(control_plane.metered()))

    async def is_told() -> bool:
        return (await claw.http.post("/api/drain")).json() == {"active_connections": 0, "usage_unsent": False}

    await until(is_told)
    assert drained == {"active_connections": 1, "usage_unsent": False}
    assert untold == {"active_connections": 0, "usage_unsent": True}
    assert name == "done"
    assert await claw.refused("Hello") == (503, "draining")


# --- through the control plane's client ------------------------------------------------------------------------------


async def test_the_agent_client_can_chat_read_configure_and_update_a_real_agent(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, agent_client: AgentClient
) -> None:
    where = AgentAddress(*control_plane.listen, control_plane.control_token)
    asked = {"message": "Hello", "conversation_id": "telegram:-5_x", "end_user": "u-1"}

    answer = msgspec.json.decode(await agent_client.chat(where, asked, idempotency_key="k"))
    async with agent_client.chat_stream(where, asked, idempotency_key="k", idle_timeout_s=5) as chunks:
        events = b"".join([chunk async for chunk in chunks]).decode()
    found = msgspec.json.decode(await agent_client.conversation(where, "telegram:-5_x"))
    listed = msgspec.json.decode(await agent_client.conversations(where, 1))

    assert events.startswith("event: token\ndata: ")
    assert json.loads(events.split("event: done\ndata: ")[1]) == answer
    assert [message["content"] for message in found["messages"]] == ["Hello", answer["message"]]
    assert listed["conversations"][0]["id"] == "telegram:-5_x"
    # So that no heartbeat's reply makes the agent fetch another version.
    control_plane.config_version = 7
    assert (await agent_client.put_config(where, 7, document(modelsim))).config_version == 7
    assert (await agent_client.get_config(where)).version == 7
    applied = await agent_client.apply_updates(where, 7, document(modelsim), restart=True)
    assert (applied.config_version, applied.restarted, applied.drained) == (7, True, True)
    assert (await agent_client.status(where)).connections == {"telegram": "off"}
    for mistake in (
        agent_client.conversation(where, "../status"),
        agent_client.chat(where, {"message": ""}),
        agent_client.chat(where, {**asked, "message": "Bye"}, idempotency_key="k"),
    ):
        with pytest.raises(AgentBadAnswer) as caught:
            await mistake
        assert (caught.value.status, caught.value.code) in {
            (404, "not_found"),
            (422, "bad_request"),
            (409, "idempotency_mismatch"),
        }
