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

#: How many of the events that changed a field are kept: the last ones, because they made it what it is.
STEPS_MAX: Final = 100


class Step(NamedTuple):
    """One event's part in a change."""

    lane: int
    seq: int
    version: int
    recorded_at: datetime
    type: str
    actor: str
    command: str
    change: Change


class Steps:
    """The events that changed a field: how many there were, and the last ones: `STEPS_MAX`, or fewer with large values."""

    def __init__(self) -> None:
        self.count = 0
        self.last = Recent[int, Step](count_max=STEPS_MAX, bytes_max=pages.PAGE_BYTES)

    def add(self, step: Step) -> None:
        self.count += 1
        weight = weight_of_document(step.change.before) + weight_of_document(step.change.after)
        self.last.put(self.count, step, weight=weight)


class Difference(NamedTuple):
    """`start` None: from before the instance was. Each change with the steps that lead from the one value to the other."""

    start: Past | None
    end: Past
    changes: list[tuple[Change, Steps]]


async def difference(pool: AsyncConnectionPool, instance_id: UUID, *, start: Past | None, end: Past) -> Difference:
    """Reads the events between the two; `start` is not after `end`."""
    first = None if start is None else start.state
    assert version_of(first) <= end.state.version, "from the earlier to the later"
    steps: defaultdict[str, Steps] = defaultdict(Steps)
    if version_of(first) < end.state.version:
        async for entry in of_instance(pool, instance_id, Wanted(), after=first):
            _collect(steps, entry)
            if entry.record.version == end.state.version:
                break
    # What went there and back again in between is no change.
    return Difference(start, end, [(change, steps[change.field]) for change in changes_between(first, end.state)])


def _collect(steps: defaultdict[str, Steps], entry: Entry) -> None:
    record = entry.record
    # Not the record itself, whose payload may be long.
    place = (record.lane, record.seq, record.version, record.recorded_at)
    for change in changes_between(entry.before, entry.after):
        steps[change.field].add(Step(*place, record.type, record.actor, record.command, change))
