"""Opens the SQLite files of the state directory, and tells a damaged file from a disk that refuses."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from hydracore.agent.errors import StateDamaged

#: The largest file that is read completely when it is opened, which takes a second or two. In a
#: larger one a damaged page shows when it is read.
CHECKED_BYTES_MAX = 256 * 1024 * 1024

_PRIVATE_FILE = 0o600
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def open_sqlite(
    path: Path, prepare: Callable[[sqlite3.Connection], object], *, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Open or create the file, and call `prepare`. Each commit on the connection is synced to disk before it returns.

    Raises `StateDamaged` if the file is not a database or has a damaged page, and
    `sqlite3.OperationalError` for a full or failing disk, which may be mended by the next start.
    """
    # SQLite gives its journal files the mode of the database, so this is the one place to set it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=check_same_thread)
    try:
        with translating_damage(path):
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            if path.stat().st_size <= CHECKED_BYTES_MAX:
                _check(db, path)
            prepare(db)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def translating_damage(path: Path) -> Generator[None]:
    """Raise `StateDamaged` in place of SQLite's errors that mean that `path` is damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # The lowest byte of an extended code is the primary code. All others pass: a violated constraint is our bug.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            raise StateDamaged(path) from None
        raise


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raises `StateDamaged`."""
    if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise StateDamaged(path)
