"""Streams as states: read a page at a time, and remembered, so that the next time only what is newer is read."""

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

#: How many events of a stream are read, and folded in one go, at most: the stream of an instance that was used for a year has
#: hundreds of thousands, and others are to be served meanwhile.
STREAM_PAGE = 200

#: How many states one process remembers, and how many bytes of them, about. A remembered state is only a shorter way to load:
#: newer events are read.
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
    """Loads what one process needs, on an open pool of autocommit connections."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._snapshots = Snapshots(pool)
        self._states = Recent[UUID, Remembered](count_max=STATES_MAX, bytes_max=STATES_BYTES_MAX)

    def remembered(self, stream_id: UUID) -> Remembered | None:
        """What was loaded or appended last, as far as it is still kept. It may be old."""
        return self._states.get(stream_id)

    def forget(self, stream_id: UUID) -> None:
        self._states.pop(stream_id)

    async def go_on(self, before: int, remembered: Remembered) -> None:
        """Remember what an append has made of the stream, which was at version `before`."""
        self._remember(*remembered)
        if is_due(before, remembered.state.version):
            await self._snapshots.keep(remembered)

    async def load(self, stream_id: UUID) -> Instance | None:
        """As `EventStore.load`."""
        remembered = self._states.get(stream_id)
        if remembered is not None:
            state = await self._gone_on(remembered)
            if state is not None:
                return state
            self._states.pop(stream_id)
        rows = await self._read(stream_id, since=1)
        state = self._fold(stream_id, None, rows)
        return await self._load_long(stream_id, state) if _may_go_on(rows) else state

    async def _load_long(self, stream_id: UUID, begun: Instance | None) -> Instance | None:
        """A stream of more than a page, which gives `begun`."""
        snapshot = await self._snapshots.of(stream_id)
        state, known = None, 0
        if snapshot is not None:
            self._remember(*snapshot)
            state, known = await self._gone_on(snapshot), snapshot.state.version
        if state is None:
            state, known = await self._fold_on(stream_id, begun), 0
        remembered = self._states.get(stream_id)
        if remembered is not None and is_due(known, remembered.state.version):
            await self._snapshots.keep(remembered)
        return state

    async def _gone_on(self, remembered: Remembered) -> Instance | None:
        """The instance after all events behind what is remembered; None where that is not of this log any more: it was restored from
        a backup.
        """
        stream_id = remembered.state.id
        rows = await self._read(stream_id, since=remembered.state.version)
        if not rows or rows[0].digest != remembered.digest:
            return None
        state = self._fold(stream_id, remembered.state, rows[1:])
        return await self._fold_on(stream_id, state) if _may_go_on(rows) else state

    async def _fold_on(self, stream_id: UUID, state: Instance | None) -> Instance | None:
        """`state` after all events that follow it."""
        while True:
            rows = await self._read(stream_id, since=1 if state is None else state.version + 1)
            state = self._fold(stream_id, state, rows)
            if not _may_go_on(rows):
                return state

    async def _read(self, stream_id: UUID, *, since: int) -> list[_Row]:
        """The next page of a stream."""

        async def read(connection: AsyncConnection) -> list[_Row]:
            parameters = (lane_of(stream_id), stream_id, since, STREAM_PAGE, pages.PAGE_BYTES)
            cursor = await connection.execute(_STREAM_FROM, parameters, prepare=True)
            return [_Row(*row) for row in await cursor.fetchall()]

        return await patiently(self._pool, read)

    def _fold(self, stream_id: UUID, state: Instance | None, rows: list[_Row]) -> Instance | None:
        state = folded(state, [row.stored for row in rows], stream_id=stream_id)
        if rows and state is not None:
            self._remember(state, rows[-1].digest)
        return state

    def _remember(self, state: Instance, digest: bytes) -> None:
        remembered, weight = self._states.weighed(state.id)
        weight = weight_of(state, before=None if remembered is None else remembered.state, weight=weight)
        self._states.put(state.id, Remembered(state, digest), weight=weight)


def _may_go_on(rows: list[_Row]) -> bool:
    weight = rows[-1].upto_bytes if rows else 0
    return pages.may_go_on(events=len(rows), events_max=STREAM_PAGE, weight=weight)
