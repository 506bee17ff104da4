"""One SQLite file with a thread of its own, so that waiting for the disk stops no chat."""

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

from hydracore.agent.sqlite_file import open_sqlite, telling_damage
from hydracore.sql import named_blocks

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_SCHEMA = named_blocks(Path(__file__).with_name("schema.sql"))["schema"]

#: Work on the database: it reads and writes in one transaction, and must not wait for anything else.
Work = Callable[[sqlite3.Connection], T]


class Database:
    """Work is done one after the other in the order in which it was given, each in a transaction that is on the disk when
    it is reported done."""

    def __init__(self, path: Path, *, new_id: Callable[[], UUID]) -> None:
        """`new_id` names the ledger of a new file. Raises `StateDamaged`."""
        self._path = path

        def prepare(db: sqlite3.Connection) -> None:
            if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
                _empty().backup(db)
            else:
                # What a file of an earlier release lacks. In one transaction: each would wait for the disk.
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            db.execute("INSERT OR IGNORE INTO ledger (only, ledger_id) VALUES (1, ?)", (str(new_id()),))

        self._db = open_sqlite(path, prepare, check_same_thread=False)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def run(self, work: Work[T]) -> T:
        """Do `work` and wait for it. It is done whatever becomes of the caller: one that is cancelled learns of that when the work
        is over, by a `CancelledError` whose cause is the work's failure, if it failed."""
        doing = asyncio.wrap_future(self._thread.submit(self._transact, work))
        try:
            # A future of the thread that is cancelled before its turn came is never done.
            return await asyncio.shield(doing)
        except asyncio.CancelledError as cancelled:
            await _over(doing)
            failure = doing.exception()
            if failure is not None:
                _log_failure(failure)
            raise cancelled from failure

    async def run_if_awaited(self, work: Work[T]) -> T:
        """As `run`, for what nobody needs once its caller has left, such as reading: who is cancelled waits for no disk, and
        the work is not done unless it had begun."""
        return await asyncio.wrap_future(self._thread.submit(self._transact, work))

    def submit(self, work: Work[None]) -> None:
        """Have `work` done before whatever is given later. A failure is logged."""
        self._thread.submit(self._transact, work).add_done_callback(_log_if_failed)

    def close(self) -> None:
        """Finish what was given, and close the file."""
        self._thread.shutdown()
        self._db.close()

    def _transact(self, work: Work[T]) -> T:
        """Raises `StateDamaged` where the work meets a page that cannot be read, and whatever else it meets."""
        with telling_damage(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                # A disk that is full has ended the transaction already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return result


@cache
def _empty() -> sqlite3.Connection:
    """All tables with nothing in them, to be copied: many agents may run in one process, and making them takes longer."""
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.executescript(_SCHEMA)
    return db


async def _over(doing: asyncio.Future[Any]) -> None:
    """Wait until it is, however often that is cancelled: it is the disk's time, and nothing that was given is left behind."""
    while not doing.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([doing])


def _log_if_failed(done: Future[None]) -> None:
    failure = done.exception()
    if failure is not None:
        _log_failure(failure)


def _log_failure(failure: BaseException) -> None:
    _log.error("database_work_failed", exc_info=failure)
