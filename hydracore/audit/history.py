"""What happened to an instance, or to all instances of a tenant, in order: each event with who did it and what it changed.

Events are read a page at a time and handed on one by one, so that memory holds no more, however long the history is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from psycopg_pool import AsyncConnectionPool

from events import pages
from events.bounded_cache import BoundedCache
from events.errors import LogCorrupted
from events.folding import EventColumns, fold_each, version_of
from events.heads import read_heads
from events.ids import LANES
from events.memory_estimates import state_bytes
from events.retries import with_retries
from events.sql import Statements
from events.state import Instance
from events.types import AnyEvent
from hydracore.audit.errors import NotInLog
from hydracore.audit.historical_state import YIELD_EVERY, absence_reason, fetch_rows, fold_forward, read_page
from hydracore.audit.timestamps import require_time

_SQL: Final = Statements("hydracore.audit", "history.sql")
_INSTANCE_EVENTS: Final = pages.insert_weight(_SQL["instance_events"])
_IS_TENANT: Final = _SQL["is_tenant"]
_TENANT_EVENTS: Final = pages.insert_weight(_SQL["tenant_events"])
_LOCATE: Final = _SQL["locate"]

#: The most commands of a tenant that are read at a time.
COMMANDS_PER_PAGE: Final = 250

#: The most states, and about the most bytes of states, that are cached while a tenant's events are read. Other
#: instances are folded again when their next event comes.
STATES_MAX: Final = 2_000
STATES_BYTES_MAX: Final = 32 * 2**20

_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


class Position(NamedTuple):
    """Where an event stands in the log."""

    lane: int
    seq: int

    def __str__(self) -> str:
        return f"{self.lane}:{self.seq}"


class LocatedEvent(NamedTuple):
    """The event at a position, with the time and the first number of its command."""

    position: Position
    stream_id: UUID
    version: int
    tenant_id: str
    recorded_at: datetime
    command_seq: int


class Record(NamedTuple):
    """An event as it is stored, with the command that caused it."""

    lane: int
    seq: int
    stream_id: UUID
    version: int
    type: str
    schema_version: int
    payload: str
    recorded_at: datetime
    command_id: UUID
    command: str
    actor: str
    correlation_id: UUID
    causation_id: UUID | None

    @property
    def stored(self) -> EventColumns:
        return self.seq, self.version, self.type, self.schema_version, self.payload


class Entry(NamedTuple):
    """An event, and the instance before and after it."""

    record: Record
    event: AnyEvent
    before: Instance | None
    after: Instance


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter for events: recorded from `since` to `until`, both included, of one of the `types`, caused by `actor`.

    `actor`: a single actor (`admin:ops`), or all of a kind (`admin`). A field that is None or empty admits all.
    """

    since: datetime | None = None
    until: datetime | None = None
    types: tuple[str, ...] = ()
    actor: str | None = None

    def matches(self, record: Record) -> bool:
        return (
            (self.since is None or record.recorded_at >= self.since)
            and (self.until is None or record.recorded_at <= self.until)
            and (not self.types or record.type in self.types)
            and (self.actor is None or self._matches_actor(record.actor))
        )

    def _matches_actor(self, actor: str) -> bool:
        return actor == self.actor or (self.actor_prefix is not None and actor.startswith(self.actor_prefix))

    @property
    def actor_prefix(self) -> str | None:
        """The common prefix of the actors, where `actor` is a kind; otherwise None."""
        return f"{self.actor}:" if self.actor is not None and ":" not in self.actor else None


async def instance_entries(
    pool: AsyncConnectionPool, instance_id: UUID, event_filter: EventFilter, *, after: Instance | None = None
) -> AsyncGenerator[Entry]:
    """The entries of an instance, in order. `after`: only those that follow this state. Raises `NotInLog`."""
    state = after
    while True:
        page, is_last = await read_page(pool, _INSTANCE_EVENTS, instance_id, after=version_of(state))
        records = [_checked_record(row) for row in page]
        for record, (event, now) in zip(
            records, fold_each(state, [record.stored for record in records], stream_id=instance_id), strict=True
        ):
            before, state = state, now
            if record.version % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            if event_filter.matches(record):
                yield Entry(record, event, before, state)
        if state is None:
            raise NotInLog(await absence_reason(pool, instance_id))
        if is_last or (event_filter.until is not None and records[-1].recorded_at > event_filter.until):
            return


async def current_heads(pool: AsyncConnectionPool) -> list[int]:
    """The present heads, by lane. Raises `StoreUnavailable`."""
    heads = await with_retries(pool, read_heads)
    return [heads[lane] for lane in range(LANES)]


async def tenant_entries(
    pool: AsyncConnectionPool,
    tenant_id: str,
    event_filter: EventFilter,
    *,
    heads: list[int] | None = None,
    after: LocatedEvent | None = None,
) -> AsyncGenerator[Entry]:
    """The entries of all instances of a tenant up to the `heads` of the lanes (None: the present ones).

    They are ordered by time, lane and number. `after`: only those behind that event. With the same
    `heads`, these are the rest of an earlier reading; events that were committed since may have earlier
    times. Raises `NotInLog` for a tenant that the log does not know.
    """
    await require_tenant(pool, tenant_id)
    parameters: dict[str, Any] = {
        "tenant_id": tenant_id,
        "heads": await current_heads(pool) if heads is None else heads,
        "until": event_filter.until,
        "actor": event_filter.actor,
        "actor_prefix": event_filter.actor_prefix,
        "types": list(event_filter.types) or None,
        "limit": COMMANDS_PER_PAGE,
        "bytes": pages.PAGE_BYTES,
    }
    # Without a filter of types or actors, each version of a stream comes right behind the one before.
    states = _StateCache(pool, gapless=not event_filter.types and event_filter.actor is None)
    cursor, passed = _first_cursors(event_filter, after)
    while True:
        page = await fetch_rows(pool, _TENANT_EVENTS, parameters | _cursor_parameters(cursor))
        for command, records in _by_command(page, all_events=not event_filter.types):
            cursor = command
            for record in records:
                if (record.recorded_at, record.lane, record.seq) <= passed:
                    continue
                before = await states.state_before(record)
                ((event, state),) = fold_each(before, [record.stored], stream_id=record.stream_id)
                states.put(state)
                yield Entry(record, event, before, state)
        if not page:
            return


async def require_tenant(pool: AsyncConnectionPool, tenant_id: str) -> None:
    """Raises `NotInLog` for a tenant that the log does not know, which may be mistyped."""
    if not (await fetch_rows(pool, _IS_TENANT, {"tenant_id": tenant_id}))[0][0]:
        raise NotInLog(f"The log has no tenant {tenant_id!r}")


async def locate(pool: AsyncConnectionPool, position: Position) -> LocatedEvent:
    """The event at a position. Raises `NotInLog`."""
    found = await fetch_rows(pool, _LOCATE, position._asdict())
    if not found:
        raise NotInLog(f"The log has no event {position}")
    located = LocatedEvent(position, *found[0])
    return located._replace(recorded_at=require_time(*position, located.recorded_at))


def _checked_record(row: tuple[Any, ...]) -> Record:
    record = Record(*row)
    if row[8] is None:
        raise LogCorrupted(record.lane, record.seq, "the command that caused the event is missing")
    require_time(record.lane, record.seq, record.recorded_at)
    return record


#: A command's time, its lane, and its first number.
Cursor = tuple[datetime, int, int]


def _cursor_parameters(cursor: Cursor) -> dict[str, Any]:
    """The cursor as parameters.

    `_BEFORE_ALL` becomes `-infinity`, so that events with forged times before it are read, too.
    """
    time, lane, seq = cursor
    return {"after_time": "-infinity" if time == _BEFORE_ALL else time, "after_lane": lane, "after_seq": seq}


def _by_command(page: list[Any], *, all_events: bool) -> Iterator[tuple[Cursor, list[Record]]]:
    """The cursor of each command, with its events. A command without events of the wanted types has none, but a cursor.

    Raises `LogCorrupted` where all events are wanted and one is missing.
    """
    for _, found in groupby(page, key=lambda row: (row[0], row[-2])):
        of_command = list(found)
        lane, recorded_at, first, count = (of_command[0][at] for at in (0, 7, -2, -1))
        cursor = (require_time(lane, first, recorded_at), lane, first)
        records = [Record(*row[:-2]) for row in of_command if row[1] is not None]
        if all_events:
            there = {record.seq for record in records}
            due = range(first, first + max(count or 1, 1))
            missing = next((seq for seq in due if seq not in there), None)
            if missing is not None:
                raise LogCorrupted(
                    lane, missing, f"the event is missing: its command has {len(due)}, beginning with {first}"
                )
        yield cursor, records


def _first_cursors(event_filter: EventFilter, after: LocatedEvent | None) -> tuple[Cursor, Cursor]:
    """Two cursors: read the commands behind the first one, and return the events behind the second one."""
    since = (event_filter.since or _BEFORE_ALL, -1, 0)
    if after is None:
        return since, since
    # The command of `after` is read again: it may have further events.
    return (
        max(since, (after.recorded_at, after.position.lane, after.command_seq - 1)),
        (after.recorded_at, after.position.lane, after.position.seq),
    )


class _StateCache:
    """Caches the states of the instances that `tenant_entries` read last. `gapless`: whether it reads every event."""

    def __init__(self, pool: AsyncConnectionPool, *, gapless: bool) -> None:
        self._pool = pool
        self._gapless = gapless
        self._states = BoundedCache[UUID, Instance](count_max=STATES_MAX, bytes_max=STATES_BYTES_MAX)

    async def state_before(self, record: Record) -> Instance | None:
        """The instance right before `record`. Events between the cached state and `record` are read and folded.

        Raises `LogCorrupted` where there are such events although every event is read: their command is missing.
        """
        state = self._states.get(record.stream_id)
        before = record.version - 1
        if self._gapless and 0 < version_of(state) < before:
            what = f"the command that led to version {version_of(state) + 1} of stream {record.stream_id} is missing"
            raise LogCorrupted(record.lane, record.seq, what)
        if version_of(state) > before:
            state = None
        if version_of(state) < before:
            state = await fold_forward(self._pool, record.stream_id, state, upto=before)
        return state

    def put(self, state: Instance) -> None:
        before, weight = self._states.get_with_weight(state.id)
        self._states.put(state.id, state, weight=state_bytes(state, before=before, weight=weight))
