"""Keeps callbacks on disk until the control plane has them, so that none is lost, doubled or reordered.

Every change is committed and synced before its method returns. That blocks for a disk write; a boot has about ten of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import structlog

from hydracore.agent.errors import SpoolFull, StateDamaged
from hydracore.agent.messages import Callback, CallbackEntry, Level, Stage
from hydracore.agent.sqlite_file import open_sqlite
from hydracore.agent.state import StateDir
from hydracore.sql import named_blocks

_log = structlog.get_logger(__name__)

#: Below the agent's state directory.
SPOOL_FILE = "spool.sqlite"

#: The most callbacks kept per boot, delivered ones included. A boot that goes well has six.
CALLBACKS_KEPT_MAX = 1000

#: The most callbacks per request. They are far smaller than the largest body that the control plane reads.
CALLBACKS_PER_REQUEST_MAX = 10

#: The longest message, in characters; more is cut off. A callback that is too long would be refused and block the rest.
MESSAGE_CHARS_MAX = 500

#: Added to the name of a damaged file that is set aside. It replaces the one that was set aside before.
_DAMAGED = ".damaged"

_SQL = named_blocks(Path(__file__).with_name("spool.sql"))


class CallbackSpool:
    """One SQLite file in `state`. Its methods are called from one thread; those that write raise `DiskWriteFailed`."""

    def __init__(self, state: StateDir) -> None:
        """A damaged file is set aside: an agent that starts is worth more than the callbacks of earlier boots."""
        self._state = state
        path = state.path / SPOOL_FILE
        with state.translating_write_errors():
            try:
                self._db = _open(path)
            except StateDamaged:
                _set_aside(path)
                _log.error("spool_damaged", kept_as=f"{path.name}{_DAMAGED}")
                self._db = _open(path)

    def close(self) -> None:
        self._db.close()

    def add_boot(self, boot_id: UUID) -> None:
        """Start a boot, and delete all other boots with their callbacks."""
        with self._transaction():
            self._execute("add_boot", boot_id=str(boot_id))
            self._execute("delete_other_boots", boot_id=str(boot_id))

    def mark_enrolled(self, boot_id: UUID) -> None:
        """Note that the control plane accepts this boot's callbacks. A restarted agent delivers those that are left."""
        with self._state.translating_write_errors():
            self._execute("mark_enrolled", boot_id=str(boot_id))

    def append(self, boot_id: UUID, stage: Stage, level: Level, message: str) -> Callback:
        """Give the callback the boot's next number and keep it. Raises `SpoolFull` when too many are undelivered."""
        boot = str(boot_id)
        with self._transaction():
            seq = self._one("last_seq", boot_id=boot)[0] + 1
            self._execute("trim", boot_id=boot, seq=seq, keep=CALLBACKS_KEPT_MAX)
            first, next_seq = self._one("first_kept_and_next", boot_id=boot)
            if seq - first >= CALLBACKS_KEPT_MAX:
                raise SpoolFull
            assert next_seq <= seq, "a number was sent before it was given out"
            callback = Callback(boot_id=boot_id, seq=seq, stage=stage, level=level, message=message[:MESSAGE_CHARS_MAX])
            self._execute(
                "add_callback", boot_id=boot, seq=seq, stage=stage, level=callback.level, message=callback.message
            )
        return callback

    def next_callback(self, boot_id: UUID) -> Callback | None:
        """The callback to send next, with those that follow it, or None when all are delivered."""
        rows = self._execute("next_callbacks", boot_id=str(boot_id), limit=CALLBACKS_PER_REQUEST_MAX).fetchall()
        if not rows:
            return None
        entries = [
            msgspec.convert(dict(zip(CallbackEntry.__struct_fields__, values, strict=True)), CallbackEntry)
            for _, *values in rows
        ]
        following = tuple(entries[1:])
        return Callback(boot_id=boot_id, seq=rows[0][0], following=following, **msgspec.structs.asdict(entries[0]))

    def mark_accepted(self, boot_id: UUID, seq: int) -> None:
        """Note that the control plane has this callback and all before it."""
        with self._state.translating_write_errors():
            self._execute("set_next_seq", boot_id=str(boot_id), seq=seq + 1)

    def resend_from(self, boot_id: UUID, seq: int) -> bool:
        """Go back (or on) to `seq`, as the control plane asked. Returns False if the spool has no such callback."""
        boot = str(boot_id)
        first, _ = self._one("first_kept_and_next", boot_id=boot)
        if not first <= seq <= self._one("last_seq", boot_id=boot)[0]:
            return False
        with self._state.translating_write_errors():
            self._execute("set_next_seq", boot_id=boot, seq=seq)
        return True

    def boots_with_pending(self) -> list[UUID]:
        """The boots that have enrolled and have undelivered callbacks."""
        return [UUID(row[0]) for row in self._execute("boots_with_pending")]

    @contextmanager
    def _transaction(self) -> Generator[None]:
        with self._state.translating_write_errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _execute(self, name: str, **values: str | int) -> sqlite3.Cursor:
        return self._db.execute(_SQL[name], values)

    def _one(self, name: str, **values: str | int) -> Any:
        row = self._execute(name, **values).fetchone()
        assert row is not None, f"{name}: unknown boot"
        return row


def _open(path: Path) -> sqlite3.Connection:
    """Raises `StateDamaged`."""
    # In one transaction: otherwise each statement would wait for the disk.
    return open_sqlite(path, lambda db: db.executescript(f"BEGIN IMMEDIATE; {_SQL['schema']} COMMIT;"))


def _set_aside(path: Path) -> None:
    """Rename a damaged file and its journal, the journal first.

    The other way round, a kill in between would leave the old journal beside the next file, and
    SQLite would apply it to that.
    """
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}{suffix}").replace(path.with_name(f"{path.name}{_DAMAGED}{suffix}"))
