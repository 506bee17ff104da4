"""Snapshots: stored states of long streams, so that a process need not fold a whole stream when it loads it first.

An instance that was used for a year has hundreds of thousands of events, which take seconds to fold. A snapshot is a state with the
digest of its last event, and is used only if the log has that event. No decision depends on whether there is a snapshot, and `audit
verify` compares all of them with the log.
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

#: Events between two snapshots of a stream.
EVERY = 500

#: The longest wait for a snapshot to be read or stored. The caller's answer does not depend on it.
PATIENCE_S = 1.0

_log = structlog.get_logger(__name__)


def is_due(before: int, after: int) -> bool:
    """Whether a snapshot is due when a stream has moved from version `before` to version `after`."""
    return after // EVERY > before // EVERY


class Snapshots:
    """The snapshots in the database, on an open pool of autocommit connections. Failures are logged, and cost only time."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def of(self, stream_id: UUID) -> Remembered | None:
        """The stream's snapshot; None if there is none that can be used."""
        asked = (lane_of(stream_id), stream_id, FOLD)
        rows = await self._run(_SNAPSHOT, asked, stream_id, failed="snapshot_not_read")
        if not rows:
            return None
        ((version, digest, text),) = rows
        try:
            state = decode(text)
        except (msgspec.DecodeError, RecursionError, TypeError) as error:
            # Written by hand. Nothing is lost: the state can be folded from the log.
            _log.warning("snapshot_unreadable", instance_id=str(stream_id), error=type(error).__name__)
            return None
        return Remembered(state, digest) if (state.id, state.version) == (stream_id, version) else None

    async def keep(self, remembered: Remembered) -> None:
        """Store the state as its stream's snapshot."""
        state, digest = remembered
        row = (lane_of(state.id), state.id, state.version, FOLD, digest, encode(state).decode())
        await self._run(_KEEP, row, state.id, failed="snapshot_not_kept")

    async def _run(self, statement: bytes, parameters: Any, stream_id: UUID, *, failed: str) -> list[Any]:
        """The rows of `statement`; none if it fails or takes longer than `PATIENCE_S`."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await run(self._pool, statement, parameters)
        except (StoreUnavailable, psycopg.Error, TimeoutError) as error:
            _log.warning(failed, instance_id=str(stream_id), error=type(error).__name__)
            return []
