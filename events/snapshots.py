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
from events.retries import run
from events.sql import Statements
from events.stream_state import FOLD_VERSION, StreamState, decode, encode

_SQL = Statements("events", "snapshots.sql")
_SNAPSHOT = _SQL["snapshot"]
_SAVE = _SQL["save"]

#: Events between two snapshots of a stream.
EVENTS_PER_SNAPSHOT = 500

#: The longest wait for a snapshot to be read or stored. The caller's answer does not depend on it.
WAIT_S_MAX = 1.0

_log = structlog.get_logger(__name__)


def is_due(before: int, after: int) -> bool:
    """Whether a snapshot is due when a stream has moved from version `before` to version `after`."""
    return after // EVENTS_PER_SNAPSHOT > before // EVENTS_PER_SNAPSHOT


class SnapshotStore:
    """The snapshots in the database, on an open pool of autocommit connections. Failures are logged, and cost only time."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def load(self, stream_id: UUID) -> StreamState | None:
        """The stream's snapshot; None if there is none that can be used."""
        asked = (lane_of(stream_id), stream_id, FOLD_VERSION)
        rows = await self._run(_SNAPSHOT, asked, stream_id, failure_event="snapshot_not_read")
        if not rows:
            return None
        ((version, digest, text),) = rows
        try:
            state = decode(text)
        except (msgspec.DecodeError, RecursionError, TypeError) as error:
            # Written by hand. Nothing is lost: the state can be folded from the log.
            _log.warning("snapshot_unreadable", instance_id=str(stream_id), error=type(error).__name__)
            return None
        return StreamState(state, digest) if (state.id, state.version) == (stream_id, version) else None

    async def save(self, stream_state: StreamState) -> None:
        """Store the state as its stream's snapshot."""
        state, digest = stream_state
        row = (lane_of(state.id), state.id, state.version, FOLD_VERSION, digest, encode(state).decode())
        await self._run(_SAVE, row, state.id, failure_event="snapshot_not_kept")

    async def _run(self, statement: bytes, parameters: Any, stream_id: UUID, *, failure_event: str) -> list[Any]:
        """The rows of `statement`. If it fails or takes longer than `WAIT_S_MAX`, logs `failure_event` and returns none."""
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                return await run(self._pool, statement, parameters)
        except (StoreUnavailable, psycopg.Error, TimeoutError) as error:
            _log.warning(failure_event, instance_id=str(stream_id), error=type(error).__name__)
            return []
