"""The SQLite files of the state directory: how they are opened, and what tells a damaged one from a disk that refuses."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from hydracore.agent.errors import StateDamaged

#: The largest file that is read through as it is opened, which takes a second or two then. In a larger one damage shows when
#: it is met.
CHECKED_MAX_BYTES = 256 * 1024 * 1024

_PRIVATE_FILE = 0o600
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_sqlite(
    path: Path, prepare: Callable[[sqlite3.Connection], object], *, check_same_thread: bool = True
) -> sqlite3.Connection:
    """The file, made where there is none, with what `prepare` puts in it; each commit is on the disk when it is over.

    Raises `StateDamaged` when it is no database or has a page that cannot be read, and `sqlite3.OperationalError` for a full or
    failing disk, which a restart may find mended.
    """
    # SQLite gives its journal files the mode of the database, so this is the one place to set it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
    try:
        with telling_damage(path):
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            if path.stat().st_size <= CHECKED_MAX_BYTES:
                _check(db, path)
            prepare(db)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def telling_damage(path: Path) -> Generator[None]:
    """`StateDamaged` in place of what SQLite raises where it meets a page of `path` that cannot be read."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Extended codes have more above the lowest byte. What breaks a rule of the schema is our bug and no damage.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            raise StateDamaged(path) from None
        raise


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raises `StateDamaged`."""
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise StateDamaged(path)
