"""Answers on Telegram are sent once, whatever Telegram, the disk, the settings and kill -9 do meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hydracore.agent.expressclaw import telegram as telegram_channel
from hydracore.agent.expressclaw import telegram_answers, telegram_api, telegram_delivery
from hydracore.agent.expressclaw.store import STORE_FILE
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.agent_process import AgentProcess
from tests.claw_fixtures import (
    Claw,
    agent_fixture,
    claw_fixture,
    connected,
    control_plane_fixture,
    document,
    modelsim_fixture,
    push_config,
    until_connection,
)
from tests.fake_control_plane import FakeControlPlane
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.modelsim_fixtures import ModelSim
from tests.telegram_fixtures import telegram_fixture, with_bot
from tests.waiting import PATIENCE_S, until

__all__ = ["agent_fixture", "claw_fixture", "control_plane_fixture", "modelsim_fixture", "telegram_fixture"]


@pytest.fixture
def chats(tmp_path: Path, claw: Claw) -> Path:
    """The agent's database."""
    (path,) = tmp_path.rglob(STORE_FILE)
    return path


def execute(path: Path, *statements: str) -> None:
    """Execute statements in the database of a running agent."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def refuse(path: Path, what: str) -> None:
    """Let SQLite fail at each "INSERT" into Telegram's inbox, or each "DELETE", and at nothing else. Malformed JSON is an
    operational error, like a full disk."""
    execute(path, f"CREATE TRIGGER refused BEFORE {what} ON telegram_update BEGIN SELECT json('no'); END")


REFUSED = "error: the disk refuses writes: malformed JSON"


async def test_a_message_that_cannot_be_stored_is_retried_and_stops_no_other_chat(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram, chats: Path
) -> None:
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await until_connection(claw, "telegram", "connected")
    await modelsim.fault("hold", after_tokens=2)
    held = asyncio.create_task(claw.chat("Count to 20", "c1"))
    await modelsim.until_requests(1, ended="open")

    refuse(chats, "INSERT")
    await telegram.write("Hello")
    await until_connection(claw, "telegram", REFUSED)
    await modelsim.release()
    assert (await held)["message"].startswith(ANSWER_PREFIX)
    execute(chats, "DROP TRIGGER refused")

    assert await telegram.until_sent(1) == [(5, f"{ANSWER_PREFIX} You said: Hello")]
    await until_connection(claw, "telegram", "connected")


async def test_an_answer_is_sent_again_only_if_it_cannot_have_arrived(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    telegram.script("sendMessage", 429, "fine", "reply_lost", "gateway_timeout", 403)
    await push_config(claw, control_plane, with_bot(modelsim, telegram))

    words = ("One", "Two", "Three", "Four, from one who has blocked the bot", "Five")
    for word in words:
        await telegram.write(word)
    sent = await telegram.until_sent(4)

    # The last answer is sent after all earlier ones of its chat.
    assert [text for _, text in sent] == [
        f"{ANSWER_PREFIX} You said: {word}" for word in words if "blocked" not in word
    ]


async def test_a_rate_limited_answer_is_sent_once_even_if_others_write_meanwhile(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    telegram.script("sendMessage", 429)
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await telegram.write("Hello", chat=5)
    await telegram.until(lambda: telegram.refused == 1)

    for count in (1, 2):
        await telegram.write("Others", chat=6)
        await telegram.until(lambda count=count: sum(chat == 6 for chat, _ in telegram.sent) == count)
    await telegram.write("Bye", chat=5)
    sent = await telegram.until_sent(4)

    assert [text for chat, text in sent if chat == 5] == [
        f"{ANSWER_PREFIX} You said: Hello",
        f"{ANSWER_PREFIX} You said: Bye",
    ]


async def test_a_rate_limited_answer_is_sent_even_if_the_settings_change_meanwhile(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    telegram.script("sendMessage", "fine", 429)
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await telegram.write("x" * 4096)
    await telegram.until(lambda: telegram.refused == 1)

    platform = document(modelsim)["platform"] | {"channels": {"telegram": {"allowed_user_ids": [77, 78]}}}
    await push_config(claw, control_plane, with_bot(modelsim, telegram, platform=platform))
    await telegram.write("Next")
    sent = await telegram.until_sent(3)

    assert "".join(text for _, text in sent[:2]) == f"{ANSWER_PREFIX} You said: {'x' * 4096}"
    assert sent[2][1] == f"{ANSWER_PREFIX} You said: Next"


async def test_messages_beyond_the_backlog_are_left_with_telegram_until_there_is_room(
    control_plane: FakeControlPlane,
    claw: Claw,
    modelsim: ModelSim,
    telegram: FakeTelegram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telegram_answers, "BACKLOG_MAX", 1)
    monkeypatch.setattr(telegram_channel, "BACKLOG_FULL_WAIT_S", 0.01)
    monkeypatch.setattr(telegram_delivery, "RETRY_BASE_S", 0.01)
    monkeypatch.setattr(telegram_api, "RETRY_AFTER_S_MAX", 0.01)
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await until_connection(claw, "telegram", "connected")
    await modelsim.fault("hold", after_tokens=2)
    telegram.script("sendMessage", "held")

    await telegram.write("One", chat=5)
    await modelsim.until_requests(1, ended="open")
    polls = len(telegram.polls)
    await telegram.write("Two", chat=6)
    await claw.chat("Hello")
    while_answering = len(telegram.polls)
    await modelsim.release()
    await telegram.held.wait()
    await claw.chat("Hello")
    while_sending = len(telegram.polls)
    telegram.released.set()

    assert await telegram.until_sent(2) == [
        (5, f"{ANSWER_PREFIX} You said: One"),
        (6, f"{ANSWER_PREFIX} You said: Two"),
    ]
    assert (while_answering, while_sending) == (polls, polls)


async def test_a_message_that_arrives_during_a_restart_of_the_runtime_is_answered_afterwards(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    runtime = with_bot(modelsim, telegram)
    await push_config(claw, control_plane, runtime)
    await until_connection(claw, "telegram", "connected")
    await modelsim.fault("hold", after_tokens=2)
    held = asyncio.create_task(claw.ask("Count to 20", "c1"))
    await modelsim.until_requests(1, ended="open")

    body = {"config_version": control_plane.config_version, "runtime": runtime, "restart": True}
    restarting = asyncio.create_task(claw.http.post("/api/updates/apply", json=body))
    await until(lambda: refuses(claw))
    await telegram.write("Hello")
    await telegram.until(lambda: telegram.unconfirmed == [])
    await modelsim.release()
    await asyncio.gather(held, restarting)

    assert await telegram.until_sent(1) == [(5, f"{ANSWER_PREFIX} You said: Hello")]


async def refuses(claw: Claw) -> bool:
    return (await claw.ask("Hello")).status_code == 503


async def test_an_answer_being_sent_is_completed_when_the_settings_change(
    control_plane: FakeControlPlane,
    claw: Claw,
    modelsim: ModelSim,
    telegram: FakeTelegram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hydracore.agent.expressclaw.telegram_delivery.SEND_GRACE_S", PATIENCE_S)
    telegram.script("sendMessage", "held")
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await telegram.write("Hello")
    await telegram.held.wait()

    platform = document(modelsim)["platform"] | {"channels": {"telegram": {"allowed_user_ids": [77, 78]}}}
    await push_config(claw, control_plane, with_bot(modelsim, telegram, platform=platform))
    telegram.released.set()

    assert await telegram.until_sent(1) == [(5, f"{ANSWER_PREFIX} You said: Hello")]


async def test_an_answer_is_sent_only_after_its_message_is_deleted_from_the_inbox(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, telegram: FakeTelegram, chats: Path
) -> None:
    await push_config(claw, control_plane, with_bot(modelsim, telegram))
    await until_connection(claw, "telegram", "connected")
    refuse(chats, "DELETE")

    await telegram.write("Hello")
    await until_connection(claw, "telegram", REFUSED)
    assert telegram.sent == []
    execute(chats, "DROP TRIGGER refused")

    assert await telegram.until_sent(1) == [(5, f"{ANSWER_PREFIX} You said: Hello")]
    await until_connection(claw, "telegram", "connected")


async def test_every_message_is_answered_once_despite_kill_9(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    control_plane.runtime = with_bot(modelsim, telegram)
    agent.start()
    await control_plane.until_healthy()
    await telegram.write("One")
    await telegram.until_sent(1)
    await modelsim.fault("hold", after_tokens=2)
    await telegram.write("Two")
    await modelsim.until_requests(1, ended="open")
    await telegram.until(lambda: telegram.unconfirmed == [])

    await agent.kill()
    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()
    await telegram.write("Three", chat=6)
    sent = await telegram.until_sent(3)

    assert sorted(text for _, text in sent) == [f"{ANSWER_PREFIX} You said: {word}" for word in ("One", "Three", "Two")]
    async with connected(control_plane) as claw:
        assert [role for role, _ in await claw.conversation("telegram:5")] == ["user", "assistant"] * 2
    assert TOKEN not in agent.output()


async def test_a_rate_limited_answer_is_sent_once_despite_kill_9(
    control_plane: FakeControlPlane, agent: AgentProcess, modelsim: ModelSim, telegram: FakeTelegram
) -> None:
    control_plane.runtime = with_bot(modelsim, telegram)
    agent.start()
    await control_plane.until_healthy()
    telegram.script("sendMessage", 429)
    await telegram.write("One")
    await telegram.until(lambda: telegram.refused == 1)
    await until(lambda: unsent_on_disk(agent) == 1)

    await agent.kill()
    control_plane.heartbeats.clear()
    agent.start()
    await control_plane.until_healthy()
    await telegram.until_sent(1)
    await telegram.write("Two")
    sent = await telegram.until_sent(2)

    assert [text for _, text in sent] == [f"{ANSWER_PREFIX} You said: {word}" for word in ("One", "Two")]
    await until(lambda: unsent_on_disk(agent) == 0)


def unsent_on_disk(agent: AgentProcess) -> int:
    with closing(sqlite3.connect(f"file:{agent.state / STORE_FILE}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM telegram_update").fetchone()[0]
