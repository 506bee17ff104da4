"""Work of the agent's database, and the cost of chats, when callers are cancelled or leave at the worst moment."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, closing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent.chats import Question
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.service import ChatService
from hydracore.agent.expressclaw.setup import Setup, make_setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.runtime import RuntimeConfig
from hydracore.clock import now_ms
from hydracore.modelsim.script import ANSWER_PREFIX
from tests.claw_fixtures import document, modelsim_fixture
from tests.modelsim_fixtures import ModelSim
from tests.waiting import until

__all__ = ["modelsim_fixture"]


@pytest.fixture(name="complaints")
async def complaints_fixture() -> AsyncGenerator[list[str]]:
    """The errors that the event loop reports. In the end there must be none."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    yield complaints
    assert complaints == []


@pytest.fixture(name="database")
def database_fixture(tmp_path: Path, complaints: list[str]) -> Iterator[Database]:
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    with closing(database):
        yield database


@contextmanager
def busy(database: Database) -> Iterator[None]:
    """All work given to the database waits meanwhile."""
    done = threading.Event()
    database.submit(lambda _: _wait(done))
    try:
        yield
    finally:
        done.set()


def _wait(done: threading.Event) -> None:
    done.wait()


def note(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO spend (day, cost_usd) VALUES ('2026-11-27', '1')")


def refuse(_: sqlite3.Connection) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def noted(db: sqlite3.Connection) -> int:
    return db.execute("SELECT count(*) FROM spend").fetchone()[0]


async def turn_of_the_loop() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_caller_is_interrupted_only_after_its_database_work_is_done(
    database: Database, times: int
) -> None:
    with busy(database):
        noting = asyncio.create_task(database.run(note))
        await turn_of_the_loop()
        for _ in range(times):
            noting.cancel()
            await turn_of_the_loop()
        is_over = noting.done()

    with pytest.raises(asyncio.CancelledError) as cancelled:
        await noting
    assert not is_over
    assert cancelled.value.__cause__ is None
    assert await database.run(noted) == 1


async def test_failed_work_of_a_cancelled_caller_is_logged_and_is_the_cause_of_its_cancelled_error(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    with busy(database):
        refusing = asyncio.create_task(database.run(refuse))
        await turn_of_the_loop()
        refusing.cancel()
        await turn_of_the_loop()

    with pytest.raises(asyncio.CancelledError) as cancelled:
        await refusing
    assert isinstance(cancelled.value.__cause__, sqlite3.OperationalError)
    assert "database_work_failed" in "".join(capfd.readouterr())


async def test_cancellable_work_is_dropped_at_once_when_its_caller_is_cancelled(database: Database) -> None:
    with busy(database):
        asking = asyncio.create_task(database.run_cancellable(note))
        await turn_of_the_loop()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    assert asking.cancelled()
    assert await database.run(noted) == 0


async def test_closing_the_database_completes_the_work_of_cancelled_callers(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    database = Database(path, new_id=uuid4)
    with busy(database):
        noting = asyncio.create_task(database.run(note))
        await turn_of_the_loop()
        noting.cancel()
        await turn_of_the_loop()

    database.close()

    await asyncio.gather(noting, return_exceptions=True)
    assert noting.cancelled()
    with closing(sqlite3.connect(path)) as db:
        assert noted(db) == 1


@pytest.mark.parametrize("count", [1, 60])
async def test_each_caller_who_leaves_after_the_last_word_is_metered_and_new_entries_are_signalled(
    modelsim: ModelSim, tmp_path: Path, complaints: list[str], count: int
) -> None:
    path = tmp_path / "chats.sqlite"
    store = Store(path, now_ms=now_ms, new_id=uuid4)
    setup = make_setup(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)))
    chats = ChatService(store)
    store.ledger.entries_added.clear()

    await asyncio.gather(*(hear_the_last_word(chats, setup, f"Hello {number}") for number in range(count)))
    await chats.wait_until_idle()
    is_signalled = store.ledger.entries_added.is_set()

    await chats.stop()
    store.close()
    assert is_signalled
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM entry").fetchone() == (count,)
        assert db.execute("SELECT count(*) FROM turn WHERE state = 'open'").fetchone() == (0,)


async def test_a_caller_who_leaves_while_the_fallback_is_recorded_pays_once_for_the_model_before_it(
    modelsim: ModelSim, tmp_path: Path, complaints: list[str]
) -> None:
    store = Store(tmp_path / "chats.sqlite", now_ms=now_ms, new_id=uuid4)
    setup = make_setup(RuntimeConfig(type="expressclaw", version=1, settings=document(modelsim)))
    chats = ChatService(store)
    await modelsim.fault("hold", after_tokens=2, then="cut")

    question = Question(message="Hello", conversation_id=None, end_user=None, channel="api", key=None)
    with chats.open(question, setup).listening():
        await modelsim.until_requests(1, tokens_sent=2)
        disk = ExitStack()
        disk.enter_context(busy(store._database))
        await until(lambda: not store._database._thread._work_queue.qsize())
        await modelsim.release()
        await until(store._database._thread._work_queue.qsize)
    with disk:
        await turn_of_the_loop()
    await chats.wait_until_idle()
    batch = await store.ledger.next_batch()

    await chats.stop()
    store.close()
    assert batch is not None
    assert [entry.model for entry in batch.entries] == ["first"]
    assert len(await modelsim.requests()) == 1


async def hear_the_last_word(chats: ChatService, setup: Setup, message: str) -> None:
    """Listen up to the last word, and leave while the answer is being stored."""
    question = Question(
        message=message, conversation_id=message.replace(" ", "-"), end_user=None, channel="api", key=None
    )
    chat, heard = chats.open(question, setup), ""
    with chat.listening():
        async with aclosing(chat.texts()) as texts:
            async for text in texts:
                heard += text
                if heard == f"{ANSWER_PREFIX} You said: {message}":
                    return
