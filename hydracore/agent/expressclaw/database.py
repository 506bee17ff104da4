"""One SQLite file, with a thread for its work, so that waiting for the disk does not stop other chats."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import structlog

from hydracore.agent.sqlite_file import open_sqlite, translating_damage
from hydracore.sql import named_blocks

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_SCHEMA = named_blocks(Path(__file__).with_name("schema.sql"))["schema"]

#: Work on the database, done in one transaction. It must not wait for anything else.
Work = Callable[[sqlite3.Connection], T]


class Database:
    """Does work in the order in which it was given, one after the other, each in a transaction that
    is synced to disk before it is reported done."""

    def __init__(self, path: Path, *, new_id: Callable[[], UUID]) -> None:
        """`new_id` names the ledger of a new file. Raises `StateDamaged`."""
        self._path = path

        def prepare(db: sqlite3.Connection) -> None:
            if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
                _empty().backup(db)
            else:
                # Adds what a file of an earlier release lacks. In one transaction, as each one waits for the disk.
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            db.execute("INSERT OR IGNORE INTO ledger (only, ledger_id) VALUES (1, ?)", (str(new_id()),))

        self._db = open_sqlite(path, prepare, check_same_thread=False)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, work: Work[T]) -> T:
        """Do `work` and wait for it. Cancelling the caller does not stop the work.

        A cancelled caller gets its `CancelledError` only when the work is over. If the work has
        failed, that failure is the error's cause.
        """
        doing = asyncio.wrap_future(self._thread.submit(self._transact, work))
        try:
            # Shielded, as cancelling a future of the executor that has not begun would drop the work.
            return await asyncio.shield(doing)
        except asyncio.CancelledError as cancelled:
            await _wait_for(doing)
            failure = doing.exception()
            if failure is not None:
                _log_failure(failure)
            raise cancelled from failure

    async def run_cancellable(self, work: Work[T]) -> T:
        """As `run`, for work that only its caller needs, such as reading. A cancelled caller does not
        wait for the disk, and the work is dropped unless it has begun."""
        return await asyncio.wrap_future(self._thread.submit(self._transact, work))

    def submit(self, work: Work[None]) -> None:
        """Queue `work`, before all work that is given later, without waiting for it. A failure is logged."""
        self._thread.submit(self._transact, work).add_done_callback(_log_if_failed)

    def close(self) -> None:
        """Finish all work that was given, and close the file."""
        self._thread.shutdown()
        self._db.close()

    def _transact(self, work: Work[T]) -> T:
        """Raises what `work` raises, but `StateDamaged` if the file has a page that cannot be read."""
        with translating_damage(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself, as it does when the disk is full.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return result


@cache
def _empty() -> sqlite3.Connection:
    """A database with empty tables. New files are copies of it, which is faster if one process runs many agents."""
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.executescript(_SCHEMA)
    return db


async def _wait_for(doing: asyncio.Future[Any]) -> None:
    """Wait until `doing` is done, even if cancelled again and again. It takes no longer than the disk does."""
    while not doing.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([doing])


def _log_if_failed(done: Future[None]) -> None:
    failure = done.exception()
    if failure is not None:
        _log_failure(failure)


def _log_failure(failure: BaseException) -> None:
    _log.error("database_work_failed", exc_info=failure)
