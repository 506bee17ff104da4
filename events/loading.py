"""Loads streams as states, a page of events at a time. States are cached, so that the next load reads newer events only."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import pages
from events.folding import Stored, folded
from events.ids import lane_of
from events.patience import patiently
from events.recent import Recent
from events.remembered import Remembered
from events.snapshots import Snapshots, is_due
from events.sql import Statements
from events.state import Instance
from events.weights import weight_of

_STREAM_FROM = pages.paged(Statements("events", "store.sql")["stream_from"])

#: The most events that are read and folded at a time. The stream of an instance that was used for a year has hundreds of thousands,
#: and other requests must be served in between.
STREAM_PAGE = 200

#: The most states, and approximate bytes of states, that one process caches. A cached state only shortens a load: newer events are
#: still read.
STATES_MAX = 10_000
STATES_BYTES_MAX = 64 * 2**20


class _Row(NamedTuple):
    seq: int
    version: int
    type: str
    schema_version: int
    payload: str
    digest: bytes
    upto_bytes: int

    @property
    def stored(self) -> Stored:
        return self.seq, self.version, self.type, self.schema_version, self.payload


class Loader:
    """Loads and caches the states of one process, on an open pool of autocommit connections."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._snapshots = Snapshots(pool)
        self._states = Recent[UUID, Remembered](count_max=STATES_MAX, bytes_max=STATES_BYTES_MAX)

    def remembered(self, stream_id: UUID) -> Remembered | None:
        """The cached state of a stream, if there is one. It may be outdated."""
        return self._states.get(stream_id)

    def forget(self, stream_id: UUID) -> None:
        self._states.pop(stream_id)

    async def go_on(self, before: int, now: Remembered) -> None:
        """Cache the state after an append to a stream that was at version `before`. Stores a snapshot if one is due."""
        self._remember(now)
        await self._keep_if_due(before, now)

    async def load(self, stream_id: UUID) -> Instance | None:
        """As `EventStore.load`."""
        now = await self._load(stream_id)
        if now is None:
            return None
        self._remember(now)
        return now.state

    async def _load(self, stream_id: UUID) -> Remembered | None:
        known = self._states.get(stream_id)
        if known is not None:
            now = await self._gone_on(known)
            if now is not None:
                return now
            self._states.pop(stream_id)
        rows = await self._read(stream_id, since=1)
        begun = _folded(stream_id, None, rows)
        return await self._load_long(begun) if begun is not None and _may_go_on(rows) else begun

    async def _load_long(self, begun: Remembered) -> Remembered:
        """Load a stream of more than a page, of which `begun` is the state after the first one, from its snapshot if it has one."""
        snapshot = await self._snapshots.of(begun.state.id)
        now = None if snapshot is None else await self._gone_on(snapshot)
        if snapshot is None or now is None:
            before, now = 0, await self._to_the_end(begun)
        else:
            before = snapshot.state.version
        await self._keep_if_due(before, now)
        return now

    async def _gone_on(self, known: Remembered) -> Remembered | None:
        """The state after all events behind `known`; None if the log has another event at its version, as after a restore."""
        rows = await self._read(known.state.id, since=known.state.version)
        if not rows or rows[0].digest != known.digest:
            return None
        now = _folded(known.state.id, known, rows[1:])
        assert now is not None, "a state stays a state"
        return await self._to_the_end(now) if _may_go_on(rows) else now

    async def _to_the_end(self, known: Remembered) -> Remembered:
        while True:
            rows = await self._read(known.state.id, since=known.state.version + 1)
            known = _folded(known.state.id, known, rows) or known
            if not _may_go_on(rows):
                return known

    async def _keep_if_due(self, before: int, now: Remembered) -> None:
        if is_due(before, now.state.version):
            await self._snapshots.keep(now)

    async def _read(self, stream_id: UUID, *, since: int) -> list[_Row]:
        """The next page of a stream."""

        async def read(connection: AsyncConnection) -> list[_Row]:
            parameters = (lane_of(stream_id), stream_id, since, STREAM_PAGE, pages.PAGE_BYTES)
            cursor = await connection.execute(_STREAM_FROM, parameters, prepare=True)
            return [_Row(*row) for row in await cursor.fetchall()]

        return await patiently(self._pool, read)

    def _remember(self, now: Remembered) -> None:
        known, weight = self._states.weighed(now.state.id)
        weight = weight_of(now.state, before=None if known is None else known.state, weight=weight)
        self._states.put(now.state.id, now, weight=weight)


def _folded(stream_id: UUID, known: Remembered | None, rows: list[_Row]) -> Remembered | None:
    """The state after the events of `rows` behind `known`."""
    if not rows:
        return known
    state = folded(None if known is None else known.state, [row.stored for row in rows], stream_id=stream_id)
    assert state is not None, "there is an event"
    return Remembered(state, rows[-1].digest)


def _may_go_on(rows: list[_Row]) -> bool:
    weight = rows[-1].upto_bytes if rows else 0
    return pages.may_go_on(events=len(rows), events_max=STREAM_PAGE, weight=weight)
