"""What is different between two moments of an instance, field by field, and which events made it so."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events import pages
from events.folding import version_of
from events.recent import Recent
from events.weights import weight_of_document
from hydracore.audit.changes import Change, changes_between
from hydracore.audit.history import Entry, Wanted, of_instance
from hydracore.audit.past import Past

#: The most events that are kept per changed field: the last ones, because they led to its present value.
STEPS_MAX: Final = 100


class Step(NamedTuple):
    """An event that changed a field, and how."""

    lane: int
    seq: int
    version: int
    recorded_at: datetime
    type: str
    actor: str
    command: str
    change: Change


class Steps:
    """The events that changed a field: their number, and the last `STEPS_MAX`, or fewer where values are large."""

    def __init__(self) -> None:
        self.count = 0
        self.last = Recent[int, Step](count_max=STEPS_MAX, bytes_max=pages.PAGE_BYTES)

    def add(self, step: Step) -> None:
        self.count += 1
        weight = weight_of_document(step.change.before) + weight_of_document(step.change.after)
        self.last.put(self.count, step, weight=weight)


class Difference(NamedTuple):
    """`start` None: before the instance existed. Each change comes with the events that led from old to new value."""

    start: Past | None
    end: Past
    changes: list[tuple[Change, Steps]]


async def difference(pool: AsyncConnectionPool, instance_id: UUID, *, start: Past | None, end: Past) -> Difference:
    """Compare two moments of an instance, and read the events between them. `start` must not be after `end`."""
    first = None if start is None else start.state
    assert version_of(first) <= end.state.version, "from the earlier to the later"
    steps: defaultdict[str, Steps] = defaultdict(Steps)
    if version_of(first) < end.state.version:
        async for entry in of_instance(pool, instance_id, Wanted(), after=first):
            _collect(steps, entry)
            if entry.record.version == end.state.version:
                break
    # A field that was changed and has its old value again is no change.
    return Difference(start, end, [(change, steps[change.field]) for change in changes_between(first, end.state)])


def _collect(steps: defaultdict[str, Steps], entry: Entry) -> None:
    record = entry.record
    # The record itself is not kept: its payload may be long.
    place = (record.lane, record.seq, record.version, record.recorded_at)
    for change in changes_between(entry.before, entry.after):
        steps[change.field].add(Step(*place, record.type, record.actor, record.command, change))
