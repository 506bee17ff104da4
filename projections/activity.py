"""`activity`: who did what, per tenant and day (UTC) on which it was recorded in the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec

from events.exchange import Statement
from events.sql import Statements
from projections.fact import Fact, Read
from projections.tables import Rows, Table, records

_SQL = Statements("projections", "activity.sql")
_ADD = _SQL["add"]

_ACTIVITY = Table(
    "activity",
    key=("lane", "tenant_id", "day", "actor", "command"),
    columns=("lane", "tenant_id", "day", "actor", "command", "commands", "events", "first_at", "last_at"),
    stream=None,
)


class ActivityCount(msgspec.Struct):
    """What one actor did with one kind of command on one day, in the order of the table's columns."""

    commands: int
    events: int
    first_at: datetime
    last_at: datetime


class ActivityFold:
    def __init__(self) -> None:
        self._counts: dict[tuple[int, str, date, str, str], ActivityCount] = {}

    def feed(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            at = fact.recorded_at
            if at.tzinfo is not UTC:
                at = at.astimezone(UTC)
            key = (fact.lane, fact.tenant_id, at.date(), fact.actor, fact.command)
            count = self._counts.get(key)
            if count is None:
                count = self._counts[key] = ActivityCount(commands=0, events=0, first_at=at, last_at=at)
            count.commands += fact.first
            count.events += 1
            # Not with `min` and `max`, which are slower: this runs for every event in the log.
            if at < count.first_at:
                count.first_at = at
            elif at > count.last_at:
                count.last_at = at

    def rows(self) -> Rows:
        return {_ACTIVITY.name: [(*key, *msgspec.structs.astuple(deeds)) for key, deeds in self._counts.items()]}


class Activity:
    """Counts the commands of every actor, and the events that they caused."""

    name = "activity"
    version = 1
    types = None
    payloads = False
    tables = (_ACTIVITY,)
    ddl = _SQL

    def begin(self) -> ActivityFold:
        return ActivityFold()

    async def changes(self, _: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        fold = self.begin()
        fold.feed(facts)
        return [Statement(_ADD, (records(_ACTIVITY, fold.rows()),))]
