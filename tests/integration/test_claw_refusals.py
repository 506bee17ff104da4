"""Chats during which the disk refuses a write: no caller waits in vain, and the cost of each model call is metered once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import structlog
from structlog.testing import capture_logs

from hydracore.agent.chats import BudgetSpent, ModelFailed, OpenChat, Question
from hydracore.agent.expressclaw.service import ChatService
from hydracore.agent.expressclaw.setup import Setup, make_setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.runtime import RuntimeConfig
from hydracore.clock import now_ms
from tests.claw_fixtures import document, modelsim_fixture
from tests.modelsim_fixtures import ModelSim
from tests.sqlite_faults import refusing_statements
from tests.waiting import until

__all__ = ["modelsim_fixture"]

QUESTION = Question(message="Hello", conversation_id="c-1", end_user="anna", channel="api", key="k")


class Chats(NamedTuple):
    path: Path
    store: Store
    service: ChatService
    setup: Setup

    def open(self, question: Question = QUESTION) -> OpenChat:
        return self.service.open(question, self.setup)

    async def answer(self, question: Question = QUESTION) -> str:
        chat = self.open(question)
        with chat.listening():
            said = (await chat.answer()).message
        await self.service.wait_until_idle()
        return said

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(statement).fetchall()

    def metered(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT model, prompt_tokens > 0, end_user, conversation_id FROM entry ORDER BY id")


@pytest.fixture(name="chats")
async def chats_fixture(modelsim: ModelSim, tmp_path: Path) -> AsyncGenerator[Chats]:
    path = tmp_path / "chats.sqlite"
    store = Store(path, now_ms=now_ms, new_id=uuid4)
    service = ChatService(store)
    setup = make_setup(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)))
    yield Chats(path, store, service, setup)
    await service.stop()
    store.close()


async def test_a_chat_whose_end_could_not_be_stored_is_metered_by_the_next_one_with_its_key(
    chats: Chats, modelsim: ModelSim
) -> None:
    with refusing_statements(chats.path, "INSERT ON entry"), pytest.raises(ModelFailed):
        await chats.answer()
    assert chats.metered() == []

    said = await chats.answer()
    await chats.service.recover(chats.setup)

    assert said.endswith("Hello")
    assert len(await modelsim.requests()) == 2
    assert chats.metered() == [("first", 1, "anna", "c-1")] * 2
    assert chats.rows("SELECT role FROM message ORDER BY id") == [("user",), ("assistant",)]


async def test_a_chat_whose_end_could_not_be_stored_counts_against_the_budget_of_its_repeat(
    chats: Chats, modelsim: ModelSim
) -> None:
    with refusing_statements(chats.path, "INSERT ON entry"), pytest.raises(ModelFailed):
        await chats.answer()
    poor = document(modelsim)
    poor["model_policy"]["budget_daily_usd"] = "0.00000001"
    poor_setup = make_setup(RuntimeConfig(type="expressclaw", version=2, settings=poor))

    with pytest.raises(BudgetSpent):
        await chats._replace(setup=poor_setup).answer()
    await chats.answer()

    assert len(await modelsim.requests()) == 2
    assert chats.metered() == [("first", 1, "anna", "c-1")] * 2


async def test_a_chat_that_its_caller_left_is_metered_once_even_if_a_repeat_comes_before_it_ends(
    chats: Chats, modelsim: ModelSim
) -> None:
    question = QUESTION._replace(conversation_id=None)
    await modelsim.fault("hold", after_tokens=2)
    chat = chats.open(question)
    with chat.listening():
        assert await anext(chat.texts())

    await chats.answer(question)

    assert [row[:3] for row in chats.metered()] == [("first", 1, "anna")] * 2
    assert chats.rows("SELECT role FROM message ORDER BY id") == [("user",), ("assistant",)]
    assert chats.rows("SELECT state FROM turn") == [("done",)]


async def test_a_failed_model_call_is_metered_even_if_its_fallback_cannot_be_recorded(
    chats: Chats, modelsim: ModelSim
) -> None:
    await modelsim.fault("empty", model="first")

    with (
        refusing_statements(chats.path, "UPDATE OF model ON turn WHEN NEW.model = 'second'"),
        pytest.raises(ModelFailed),
    ):
        await chats.answer()

    assert [request["model"] for request in await modelsim.requests()] == ["first"]
    assert chats.metered() == [("first", 1, "anna", "c-1")]
    assert chats.rows("SELECT state FROM turn") == [("failed",)]


@pytest.mark.parametrize("refused", ["UPDATE OF model ON turn WHEN NEW.model = 'second'", "DELETE ON turn"])
async def test_a_failed_model_call_is_metered_once_if_the_caller_leaves_before_the_fallback_is_asked(
    chats: Chats, modelsim: ModelSim, refused: str
) -> None:
    await modelsim.fault("hold", after_tokens=0, then="error", model="first")
    with (
        refusing_statements(chats.path, refused),
        capture_logs() as lines,
        closing(sqlite3.connect(chats.path)) as other,
    ):
        with chats.open().listening():
            await modelsim.until_requests(1)
            # From here on the database is locked.
            other.execute("BEGIN IMMEDIATE")
            await modelsim.release()
            await until(lambda: "model_failed" in [line["event"] for line in lines])
        for _ in range(10):
            await asyncio.sleep(0)
        other.rollback()
        await chats.service.wait_until_idle()

    assert [request["model"] for request in await modelsim.requests()] == ["first"]
    assert chats.metered() == [("first", 1, "anna", "c-1")]
    assert chats.rows("SELECT state FROM turn") == [("failed",)]


async def test_words_that_cannot_be_stored_for_now_end_no_chat_and_are_stored_later(
    chats: Chats, modelsim: ModelSim
) -> None:
    await modelsim.fault("hold", after_tokens=2)
    noting = asyncio.create_task(chats.service.save_partials_periodically())
    chat = chats.open()
    with chat.listening():
        with (
            refusing_statements(chats.path, "UPDATE OF partial ON turn WHEN NEW.partial <> ''"),
            capture_logs() as lines,
        ):
            await until(lambda: lines)
        await until(lambda: chats.rows("SELECT partial <> '' FROM turn") == [(1,)])
        await modelsim.release()
        said = (await chat.answer()).message

    assert [line["event"] for line in lines] == ["partials_not_noted"]
    assert said.endswith("Hello")
    assert not noting.done()
    noting.cancel()
    await asyncio.gather(noting, return_exceptions=True)


@pytest.fixture(name="full_log")
def full_log_fixture() -> Iterator[None]:
    """Every write to the log fails, as on a full disk."""
    before = structlog.get_config()
    with Path("/dev/full").open("wb", buffering=0) as full:
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(TextIOWrapper(full, write_through=True)))
        yield
        structlog.configure(**before)


async def test_waiting_callers_learn_that_a_chat_failed_even_if_the_log_cannot_be_written(
    chats: Chats, full_log: None
) -> None:
    with refusing_statements(chats.path, "INSERT ON turn"), chats.open().listening():
        (running,) = chats.service._tasks
        chat = chats.open()
        with pytest.raises(ModelFailed):
            await chat.answer()
        with pytest.raises(OSError, match="No space left"):
            await running
