"""Loads streams as states, a page of events at a time. States are cached, so that the next load reads newer events only."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import pages
from events.bounded_cache import BoundedCache
from events.folding import EventColumns, fold_page
from events.ids import lane_of
from events.memory_estimates import state_bytes
from events.retries import with_retries
from events.snapshots import SnapshotStore, is_due
from events.sql import Statements
from events.state import Instance
from events.stream_state import StreamState

_STREAM_FROM = pages.insert_weight(Statements("events", "store.sql")["stream_from"])

#: The most events that are read and folded at a time. The stream of an instance that was used for a year has hundreds of thousands,
#: and other requests must be served in between.
STREAM_PAGE = 200

#: The most states, and approximate bytes of states, that one process caches. A cached state only shortens a load: newer events are
#: still read.
STATES_MAX = 10_000
STATES_BYTES_MAX = 64 * 2**20

#: As long as a digest, and the digest of nothing.
_NO_DIGEST = bytes(32)


class _Row(NamedTuple):
    seq: int
    version: int
    type: str
    schema_version: int
    payload: str
    digest: bytes
    upto_bytes: int

    @property
    def stored(self) -> EventColumns:
        return self.seq, self.version, self.type, self.schema_version, self.payload


class Loader:
    """Loads and caches the states of one process, on an open pool of autocommit connections."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._snapshots = SnapshotStore(pool)
        self._states = BoundedCache[UUID, StreamState](count_max=STATES_MAX, bytes_max=STATES_BYTES_MAX)

    def cached(self, stream_id: UUID) -> StreamState | None:
        """The cached state of a stream, if there is one. It may be outdated."""
        return self._states.get(stream_id)

    async def digest_of(self, state: Instance) -> bytes:
        """The digest of the last event of `state`; one that no event has if the stream is in another state by now."""
        known = self._states.get(state.id)
        if known is None or known.state is not state:
            # It was evicted since it was loaded, or the stream has changed: perhaps to another history of as many events.
            known = await self._load_and_cache(state.id)
        return known.digest if known is not None and known.state == state else _NO_DIGEST

    def evict(self, stream_id: UUID) -> None:
        self._states.pop(stream_id)

    async def record_append(self, before: int, now: StreamState) -> None:
        """Cache the state after an append to a stream that was at version `before`. Stores a snapshot if one is due."""
        self._cache(now)
        await self._save_if_due(before, now)

    async def load(self, stream_id: UUID) -> Instance | None:
        """As `EventStore.load`."""
        now = await self._load_and_cache(stream_id)
        return None if now is None else now.state

    async def _load_and_cache(self, stream_id: UUID) -> StreamState | None:
        now = await self._load(stream_id)
        if now is not None:
            self._cache(now)
        return now

    async def _load(self, stream_id: UUID) -> StreamState | None:
        known = self._states.get(stream_id)
        if known is not None:
            now = await self._continue_from(known)
            if now is not None:
                return now
            self._states.pop(stream_id)
        # Most streams have a single page, so a snapshot is looked for only behind the first one.
        rows = await self._read(stream_id, since=1)
        first_page = _fold_rows(stream_id, None, rows)
        return await self._load_long(first_page) if first_page is not None and _is_full(rows) else first_page

    async def _load_long(self, first_page: StreamState) -> StreamState:
        """Load a stream of more than one page, from its snapshot if it has one. `first_page`: the state after the first page."""
        snapshot = await self._snapshots.load(first_page.state.id)
        now = None if snapshot is None else await self._continue_from(snapshot)
        if snapshot is None or now is None:
            before, now = 0, await self._read_to_end(first_page)
        else:
            before = snapshot.state.version
        await self._save_if_due(before, now)
        return now

    async def _continue_from(self, known: StreamState) -> StreamState | None:
        """The state after all events behind `known`; None if the log has another event at its version, as after a restore."""
        rows = await self._read(known.state.id, since=known.state.version)
        if not rows or rows[0].digest != known.digest:
            return None
        now = _fold_rows(known.state.id, known, rows[1:])
        assert now is not None, "a state stays a state"
        return await self._read_to_end(now) if _is_full(rows) else now

    async def _read_to_end(self, known: StreamState) -> StreamState:
        while True:
            rows = await self._read(known.state.id, since=known.state.version + 1)
            known = _fold_rows(known.state.id, known, rows) or known
            if not _is_full(rows):
                return known

    async def _save_if_due(self, before: int, now: StreamState) -> None:
        if is_due(before, now.state.version):
            await self._snapshots.save(now)

    async def _read(self, stream_id: UUID, *, since: int) -> list[_Row]:
        """The next page of a stream."""

        async def read(connection: AsyncConnection) -> list[_Row]:
            parameters = (lane_of(stream_id), stream_id, since, STREAM_PAGE, pages.PAGE_BYTES)
            cursor = await connection.execute(_STREAM_FROM, parameters, prepare=True)
            return [_Row(*row) for row in await cursor.fetchall()]

        return await with_retries(self._pool, read)

    def _cache(self, now: StreamState) -> None:
        known, weight = self._states.get_with_weight(now.state.id)
        weight = state_bytes(now.state, before=None if known is None else known.state, weight=weight)
        self._states.put(now.state.id, now, weight=weight)


def _fold_rows(stream_id: UUID, known: StreamState | None, rows: list[_Row]) -> StreamState | None:
    """The state after the events of `rows` behind `known`."""
    if not rows:
        return known
    state = fold_page(None if known is None else known.state, [row.stored for row in rows], stream_id=stream_id)
    assert state is not None, "there is an event"
    return StreamState(state, rows[-1].digest)


def _is_full(rows: list[_Row]) -> bool:
    weight = rows[-1].upto_bytes if rows else 0
    return pages.is_full(events=len(rows), events_max=STREAM_PAGE, weight=weight)
