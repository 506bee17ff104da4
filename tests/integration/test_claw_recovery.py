"""Conversations and usage of an agent after kill -9, lost requests and a restore of the control plane."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import stat
from contextlib import aclosing, closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from hydracore.agent.expressclaw.store import STORE_FILE
from hydracore.agent.state import STATE_DIR
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.agent_process import AgentProcess
from tests.claw_fixtures import (
    API_KEY,
    Claw,
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
from tests.sqlite_faults import refusing_statements
from tests.waiting import PATIENCE_S, until

__all__ = ["agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_conversations_keys_and_usage_survive_kill_9(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim
) -> None:
    control_plane.runtime = document(modelsim)
    control_plane.script("usage", *[503] * 1000)
    agent.start()
    await control_plane.until_healthy()
    async with connected(control_plane) as claw:
        answers = [await claw.chat(f"Message {number}", "kept", key=f"key-{number}") for number in range(3)]
        said = await claw.conversation("kept")
        (listed,) = (await claw.http.get("/api/conversations")).json()["conversations"]

    await agent.kill()
    assert control_plane.metered() == []
    control_plane._troubles.clear()
    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()

    async with connected(control_plane) as claw:
        assert await claw.conversation("kept") == said
        assert (await claw.http.get("/api/conversations")).json()["conversations"] == [listed]
        assert await claw.chat("Message 1", "kept", key="key-1") == answers[1]
        assert (await claw.chat("What did I say before?", "kept"))["message"].endswith(
            "Message 0; Message 1; Message 2"
        )
    await control_plane.until(lambda: len(control_plane.metered()) == 4)
    costs = [entry["cost_usd"] for entry in control_plane.metered()]
    assert costs[:3] == [answer["usage"]["cost_usd"] for answer in answers]
    assert len(await modelsim.requests()) == 4
    assert API_KEY not in agent.output()
    assert stat.S_IMODE((agent.state / STORE_FILE).stat().st_mode) == 0o600


async def test_a_turn_that_was_open_at_kill_9_is_closed_and_metered_once(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim
) -> None:
    control_plane.runtime = document(modelsim)
    agent.start()
    await control_plane.until_healthy()
    await modelsim.fault("hold", after_tokens=3)
    async with connected(control_plane) as claw, aclosing(claw.stream("Hello", "cut-1", key="cut")) as events:
        said = ""
        while said != f"{ANSWER_PREFIX} You said: ":
            said += (await anext(events))[1]["text"]
        await until(lambda: partial_on_disk(agent) == said)

        await agent.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(events)

    for _ in range(2):
        control_plane.heartbeats.clear()
        agent.start()
        await control_plane.until_healthy()
        async with connected(control_plane) as claw:
            assert await claw.conversation("cut-1") == [("user", "Hello"), ("assistant", said)]
        await control_plane.until(lambda: len(control_plane.metered()) == 1)
        await agent.kill()

    (entry,) = control_plane.metered()
    assert (entry["model"], entry["conversation_id"], entry["channel"]) == ("first", "cut-1", "api")
    assert entry["completion_tokens"] == -(-len(said) // 4)
    assert Decimal(entry["cost_usd"]) == Decimal(entry["prompt_tokens"] * 1000 + entry["completion_tokens"] * 2000) / (
        1_000_000
    )

    agent.start()
    control_plane.heartbeats.clear()
    await control_plane.until_healthy()
    async with connected(control_plane) as claw:
        answer = await claw.chat("Hello", "cut-1", key="cut")
        assert await claw.conversation("cut-1") == [("user", "Hello"), ("assistant", answer["message"])]


def partial_on_disk(agent: AgentProcess) -> str | None:
    with closing(sqlite3.connect(agent.state / STORE_FILE)) as db:
        row = db.execute("SELECT partial FROM turn WHERE state = 'open'").fetchone()
    return None if row is None else row[0]


async def test_a_signal_ends_open_chats_with_an_error_and_keeps_their_words(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim
) -> None:
    control_plane.runtime = document(modelsim)
    agent.start()
    await control_plane.until_healthy()
    await modelsim.fault("hold", after_tokens=1)
    async with connected(control_plane) as claw, aclosing(claw.stream("Hello", "end-1")) as events:
        _, token = await anext(events)
        agent.signal(signal.SIGTERM)
        rest, (name, error) = await joined_text(events)
    assert (name, error["code"], rest) == ("error", "interrupted", "")
    assert await agent.exit_code() == 0

    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()

    async with connected(control_plane) as claw:
        assert await claw.conversation("end-1") == [("user", "Hello"), ("assistant", token["text"])]
    await control_plane.until(lambda: len(control_plane.metered()) == 1)


# --- usage -----------------------------------------------------------------------------------------------------------


async def test_every_model_call_is_metered_once_whichever_requests_and_replies_are_lost(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    control_plane.script("usage", "request_lost", "reply_lost", 503, "reply_lost", 500)

    answers = [await claw.chat(f"Message {number}", end_user=f"user-{number % 2}") for number in range(5)]
    await control_plane.until(lambda: len(control_plane.metered()) == 5)

    # The control plane itself refuses gaps and a number used for two batches.
    entries = control_plane.metered()
    assert [entry["cost_usd"] for entry in entries] == [answer["usage"]["cost_usd"] for answer in answers]
    assert [entry["end_user"] for entry in entries] == ["user-0", "user-1", "user-0", "user-1", "user-0"]
    assert entries[0].keys() == {
        *("at_ms", "model", "prompt_tokens", "completion_tokens", "cost_usd", "end_user", "channel", "conversation_id")
    }
    assert len(control_plane.usage) == 1, "one file is one ledger"


async def test_usage_that_the_control_plane_has_lost_is_sent_again(control_plane: FakeControlPlane, claw: Claw) -> None:
    for number in range(3):
        await claw.chat(f"Message {number}")
        await control_plane.until(lambda number=number: len(control_plane.metered()) == number + 1)
    before = control_plane.metered()

    control_plane.lose_usage(2)
    await claw.chat("One more")
    await control_plane.until(lambda: len(control_plane.metered()) == 4)

    assert control_plane.metered()[:3] == before


@pytest.mark.parametrize(
    "answer",
    [
        # Larger than a batch number can be, and larger than an integer of SQLite.
        (409, {"detail": "x", "expected_seq": 2**63}),
        (409, {"detail": "x", "expected_seq": 10**30}),
        (409, {"detail": "x", "expected_seq": -1}),
        # An acknowledgement of another batch than the one that was sent.
        (200, {"seq": 2, "duplicate": False}),
    ],
)
async def test_an_invalid_answer_to_a_usage_batch_loses_no_usage_and_ends_no_agent(
    control_plane: FakeControlPlane, claw: Claw, answer: tuple[int, dict[str, Any]]
) -> None:
    control_plane.script("usage", answer)

    await claw.chat("Hello")

    await control_plane.until(lambda: len(control_plane.metered()) == 1)
    assert len(control_plane.boots) == 1


async def test_usage_lost_by_a_restore_counts_as_unsent_and_is_sent_again_with_a_new_key(
    control_plane: FakeControlPlane, claw: Claw
) -> None:
    for number in range(3):
        await claw.chat(f"Message {number}")
        await control_plane.until(lambda number=number: len(control_plane.metered()) == number + 1)
    before = control_plane.metered()

    control_plane.lose_usage(2)
    hold = control_plane.hold("usage", "before")
    control_plane.rotate_key()
    async with asyncio.timeout(PATIENCE_S):
        await hold.reached.wait()
    drained = (await claw.http.post("/api/drain")).json()
    hold.released.set()
    await control_plane.until(lambda: len(control_plane.metered()) == 3)

    assert drained == {"active_connections": 0, "usage_unsent": True}
    assert control_plane.metered() == before
    await until(lambda: is_all_sent(claw))


async def is_all_sent(claw: Claw) -> bool:
    return not (await claw.http.post("/api/drain")).json()["usage_unsent"]


@pytest.mark.parametrize("with_callbacks_left", [False, True], ids=["while_it_replaces_its_key", "with_callbacks_left"])
async def test_usage_lost_by_a_restore_is_sent_again_even_if_the_agent_is_killed_meanwhile(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim, *, with_callbacks_left: bool
) -> None:
    control_plane.runtime = document(modelsim)
    if with_callbacks_left:
        control_plane.script("callback", *[503] * 1000)
    agent.start()
    await control_plane.until(lambda: bool(control_plane.heartbeats))
    async with connected(control_plane) as claw:
        await claw.chat("Hello")
        await until(lambda: is_all_sent(claw))
    before = control_plane.metered()

    hold = control_plane.hold("secrets/ack", "before")
    if with_callbacks_left:
        await agent.kill()
    control_plane.lose_usage(1)
    control_plane.rotate_key()
    if not with_callbacks_left:
        async with asyncio.timeout(PATIENCE_S):
            await hold.reached.wait()
        await agent.kill()
    control_plane._troubles.clear()
    hold.released.set()
    agent.start()
    await control_plane.until(lambda: len(control_plane.metered()) == len(before) == 1)

    assert control_plane.metered() == before


async def test_usage_left_by_a_superseded_boot_is_sent_by_the_next_boot_without_new_usage(
    control_plane: FakeControlPlane, claw: Claw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hydracore.agent.usage.CHECK_EVERY_S", 3600.0)
    control_plane.script("usage", *[503] * 1000)
    await claw.chat("Hello")
    await control_plane.until(lambda: any(call.endpoint == "usage" for call in control_plane.calls))

    # An enrolment that an earlier process had sent arrives late.
    control_plane.boot_id = str(uuid4())
    control_plane.boots.append(control_plane.boot_id)
    await control_plane.until(lambda: len(control_plane.boots) == 3)
    control_plane._troubles.clear()

    await control_plane.until(lambda: len(control_plane.metered()) == 1)


@pytest.mark.parametrize("refused", ["UPDATE ON entry", "UPDATE ON ledger"])
async def test_a_disk_error_while_usage_is_sent_ends_no_agent_and_loses_no_usage(
    control_plane: FakeControlPlane, claw: Claw, tmp_path: Path, refused: str
) -> None:
    with capture_logs() as lines, refusing_statements(tmp_path / "vps" / STATE_DIR / STORE_FILE, refused):
        await claw.chat("Hello")
        await until(lambda: any(line["event"] == "disk_retry" for line in lines))
    await claw.chat("Hello")

    await control_plane.until(lambda: len(control_plane.metered()) == 2)
    assert len(control_plane.boots) == 1


async def test_usage_is_sent_in_batches_of_at_most_a_hundred_entries(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    control_plane.script("usage", *[503] * 3)

    await asyncio.gather(*(claw.chat("Hello") for _ in range(120)))
    await control_plane.until(lambda: len(control_plane.metered()) == 120)

    (batches,) = control_plane.usage.values()
    assert max(len(batch["entries"]) for batch in batches) <= 100
    assert len({request["number"] for request in await modelsim.requests()}) == 120


async def test_a_model_call_that_fails_midway_is_metered_beside_the_fallback_that_answers(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await modelsim.fault("error", after_tokens=2, model="first")

    answer = await claw.chat("Hello")
    await control_plane.until(lambda: len(control_plane.metered()) == 2)

    entries: list[dict[str, Any]] = control_plane.metered()
    assert [entry["model"] for entry in entries] == ["first", "second"]
    assert entries[1]["cost_usd"] == answer["usage"]["cost_usd"]
    assert entries[0]["completion_tokens"] > 0


async def test_a_model_call_that_is_refused_or_cannot_connect_costs_nothing(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    nowhere = document(modelsim, model={"base_url": "http://127.0.0.1:1/v1", "api_key": API_KEY})
    await claw.http.put("/api/config", json={"config_version": 4, "runtime": nowhere})
    assert await claw.refused("Hello") == (502, "model_failed")
    await claw.http.put("/api/config", json={"config_version": 5, "runtime": document(modelsim)})
    await modelsim.fault("status", status=429, model="first")

    answer = await claw.chat("Hello")
    await control_plane.until(lambda: bool(control_plane.metered()))

    # What is metered goes out in order, so there was nothing before this.
    (entry,) = control_plane.metered()
    assert (entry["model"], entry["cost_usd"]) == ("second", answer["usage"]["cost_usd"])
