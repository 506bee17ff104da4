"""What is different between two moments of an instance, field by field, and which events made it so."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events.state import Instance
from hydracore.audit.changes import Change, changes_between
from hydracore.audit.history import Entry, Record, Wanted, of_instance
from hydracore.audit.past import Past, version_of


class Step(NamedTuple):
    """One event's part in a change."""

    record: Record
    change: Change


class Difference(NamedTuple):
    """`start` None: from before the instance was. Each change with the steps that lead from the one value to the other."""

    start: Past | None
    end: Past
    changes: list[tuple[Change, list[Step]]]


async def difference(pool: AsyncConnectionPool, instance_id: UUID, *, start: Past | None, end: Past) -> Difference:
    """Reads the events between the two; `start` is not after `end`."""
    first = None if start is None else start.state
    assert version_of(first) <= end.state.version, "from the earlier to the later"
    steps: dict[str, list[Step]] = {}
    if version_of(first) < end.state.version:
        async for entry in of_instance(pool, instance_id, Wanted(), after=first):
            _collect(steps, entry)
            if entry.record.version == end.state.version:
                break
    return Difference(start, end, [(change, steps[change.field]) for change in _net(first, end.state)])


def _collect(steps: dict[str, list[Step]], entry: Entry) -> None:
    for change in changes_between(entry.before, entry.after):
        steps.setdefault(change.field, []).append(Step(entry.record, change))


def _net(first: Instance | None, last: Instance) -> list[Change]:
    """What went there and back again in between is no change."""
    return list(changes_between(first, last))
