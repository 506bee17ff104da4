"""Snapshots: the states of long streams, for processes that have not read them yet.

An instance that was used for a year has hundreds of thousands of events, and whoever begins with it would fold them for seconds. A
snapshot is a state with the digest of the last event behind it, as a store remembers states too; it is believed where the log has that
event. No decision depends on whether there is one, and `audit verify` compares them with the log.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from events.errors import StoreUnavailable
from events.ids import lane_of
from events.patience import run
from events.remembered import FOLD, Remembered, decode, encode
from events.sql import Statements

_SQL = Statements("events", "snapshots.sql")
_SNAPSHOT = _SQL["snapshot"]
_KEEP = _SQL["keep"]

#: After how many events of a stream the next snapshot is due.
EVERY = 500

#: For how long one is tried to be read or kept, where the database is away or somebody has locked the table.
PATIENCE_S = 1.0

_log = structlog.get_logger(__name__)


def is_due(before: int, after: int) -> bool:
    """Whether there should be a snapshot, of a stream that goes on from one version to another."""
    return after // EVERY > before // EVERY


class Snapshots:
    """Those in the database of an open pool of autocommit connections. Whatever goes wrong with one costs time and nothing else."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def of(self, stream_id: UUID) -> Remembered | None:
        """The stream's last one."""
        asked = (lane_of(stream_id), stream_id, FOLD)
        rows = await self._run(_SNAPSHOT, asked, stream_id, failed="snapshot_not_read")
        if not rows:
            return None
        ((version, digest, text),) = rows
        try:
            state = decode(text)
        except (msgspec.DecodeError, RecursionError, TypeError) as error:
            # Somebody wrote it by hand. The log has all that it should say.
            _log.warning("snapshot_unreadable", instance_id=str(stream_id), error=type(error).__name__)
            return None
        return Remembered(state, digest) if (state.id, state.version) == (stream_id, version) else None

    async def keep(self, remembered: Remembered) -> None:
        """Make this the stream's."""
        state, digest = remembered
        row = (lane_of(state.id), state.id, state.version, FOLD, digest, encode(state).decode())
        await self._run(_KEEP, row, state.id, failed="snapshot_not_kept")

    async def _run(self, statement: bytes, parameters: Any, stream_id: UUID, *, failed: str) -> list[Any]:
        """Its rows; none where it fails, or takes long: somebody waits for an answer that does not depend on it."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await run(self._pool, statement, parameters)
        except (StoreUnavailable, psycopg.Error, TimeoutError) as error:
            _log.warning(failed, instance_id=str(stream_id), error=type(error).__name__)
            return []
