"""Compares an instance at two moments, field by field, with the events that changed each field."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events import pages
from events.bounded_cache import BoundedCache
from events.folding import version_of
from events.memory_estimates import document_bytes
from hydracore.audit.changes import Change, changes_between
from hydracore.audit.historical_state import HistoricalState
from hydracore.audit.history import Entry, EventFilter, instance_entries

#: The most events that are kept per changed field: the last ones, because they led to its final value.
FIELD_EVENTS_MAX: Final = 100


class FieldEvent(NamedTuple):
    """An event that changed a field, and the change."""

    lane: int
    seq: int
    version: int
    recorded_at: datetime
    type: str
    actor: str
    command: str
    change: Change


class FieldEvents:
    """The events that changed a field: how many, and the last `FIELD_EVENTS_MAX`, or fewer where values are large."""

    def __init__(self) -> None:
        self.count = 0
        self.last = BoundedCache[int, FieldEvent](count_max=FIELD_EVENTS_MAX, bytes_max=pages.PAGE_BYTES)

    def add(self, event: FieldEvent) -> None:
        self.count += 1
        weight = document_bytes(event.change.before) + document_bytes(event.change.after)
        self.last.put(self.count, event, weight=weight)


class Difference(NamedTuple):
    """`start` None: before the instance existed. Each change comes with the events that led from old to new value."""

    start: HistoricalState | None
    end: HistoricalState
    changes: list[tuple[Change, FieldEvents]]


async def difference(
    pool: AsyncConnectionPool, instance_id: UUID, *, start: HistoricalState | None, end: HistoricalState
) -> Difference:
    """Compare two moments of an instance, and read the events between them. `start` must not be after `end`."""
    first = None if start is None else start.state
    assert version_of(first) <= end.state.version, "from the earlier to the later"
    events_by_field: defaultdict[str, FieldEvents] = defaultdict(FieldEvents)
    if version_of(first) < end.state.version:
        async for entry in instance_entries(pool, instance_id, EventFilter(), after=first):
            _collect(events_by_field, entry)
            if entry.record.version == end.state.version:
                break
    # A field that was changed and has its old value again is no change.
    return Difference(
        start, end, [(change, events_by_field[change.field]) for change in changes_between(first, end.state)]
    )


def _collect(events_by_field: defaultdict[str, FieldEvents], entry: Entry) -> None:
    record = entry.record
    # The record itself is not kept: its payload may be long.
    place = (record.lane, record.seq, record.version, record.recorded_at)
    for change in changes_between(entry.before, entry.after):
        events_by_field[change.field].add(FieldEvent(*place, record.type, record.actor, record.command, change))
