"""Snapshots: the states of long streams, for processes that have not read them yet.

An instance that was used for a year has hundreds of thousands of events, and whoever begins with it would fold them for seconds. A
snapshot is a state with the digest of the last event behind it, as a store remembers states too; it is believed where the log has that
event. No decision depends on whether there is one, and `audit verify` compares them with the log.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec
import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from events.errors import StoreUnavailable
from events.ids import lane_of
from events.patience import patiently, run
from events.remembered import FOLD, Remembered, decode, encode
from events.sql import Statements

_SQL = Statements("events", "snapshots.sql")
_SNAPSHOT = _SQL["snapshot"]
_KEEP = _SQL["keep"]

#: After how many events of a stream the next snapshot is due.
EVERY = 500

#: For how long keeping one is tried while the database is away: somebody waits for an answer that does not depend on it.
_PATIENCE_S: Final = 1.0

_log = structlog.get_logger(__name__)


def is_due(before: int, after: int) -> bool:
    """Whether there should be a snapshot, of a stream that goes on from one version to another."""
    return after // EVERY > before // EVERY


class Snapshots:
    """Those in the database of an open pool of autocommit connections."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def of(self, stream_id: UUID) -> Remembered | None:
        """The stream's last one. Raises `StoreUnavailable`."""
        rows = await run(self._pool, _SNAPSHOT, (lane_of(stream_id), stream_id, FOLD))
        for version, digest, text in rows:
            try:
                state = decode(text)
            except (msgspec.DecodeError, RecursionError) as error:
                # Somebody wrote it by hand. The log has all that it should say.
                _log.warning("snapshot_unreadable", instance_id=str(stream_id), error=type(error).__name__)
                return None
            if (state.id, state.version) == (stream_id, version):
                return Remembered(state, digest)
        return None

    async def keep(self, remembered: Remembered) -> None:
        """Make this the stream's. Where that fails, reading takes longer, and nothing else."""
        state, digest = remembered
        row = (lane_of(state.id), state.id, state.version, FOLD, digest, encode(state).decode())

        async def write(connection: psycopg.AsyncConnection) -> None:
            await connection.execute(_KEEP, row, prepare=True)

        try:
            await patiently(self._pool, write, patience_s=_PATIENCE_S)
        except (StoreUnavailable, psycopg.Error) as error:
            _log.warning("snapshot_not_kept", instance_id=str(state.id), error=type(error).__name__)
