"""`fleet` and `fleet_member`: how many instances were in each status, at each provider, region and tier, over time.

Changes count from when they were recorded in the log, and not from when they are said to have happened, so that the
counts of a past hour never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from events import types as e
from events.exchange import Statement, Values, array_literal
from events.lifecycle import DELETED, DELETING, ERROR, FAILED, PENDING, PROVISIONING, RUNNING, Status
from events.sql import Statements
from events.times import EPOCH
from events.upcast import TAG_BY_NAME
from projections.fact import Fact, Read
from projections.tables import Rows, Table, records

_SQL = Statements("projections", "fleet.sql")
_MEMBERS = _SQL["members"]
_ADD_MOVES = _SQL["add_moves"]
_SET_MEMBERS = _SQL["set_members"]

_FLEET = Table(
    "fleet",
    key=("lane", "hour", "status", "provider", "region_id", "tier_id"),
    columns=("lane", "hour", "status", "provider", "region_id", "tier_id", "entries", "exits"),
    stream=None,
)
_MEMBER = Table(
    "fleet_member",
    key=("lane", "instance_id"),
    columns=("lane", "instance_id", "status", "provider", "region_id", "tier_id"),
    stream="instance_id",
)

#: The events that move an instance from one status to another, with the status that they lead to.
_STATUS_AFTER: dict[type[e.Event], Status] = {
    e.PlacementChosen: PROVISIONING,
    e.InstanceReady: RUNNING,
    e.ProvisioningFailed: FAILED,
    e.ServerVanished: ERROR,
    e.DeletionRequested: DELETING,
    e.InstanceDeleted: DELETED,
}


class Member(NamedTuple):
    """What an instance is counted under. `provider` is empty until a placement was chosen."""

    status: Status
    provider: str
    region_id: str
    tier_id: str


class FleetFold:
    """Counts moves of instances between `Member`s. `known`: what instances are counted under at the start."""

    def __init__(self, known: Mapping[UUID, Member]) -> None:
        self._members = dict(known)
        self._lanes: dict[UUID, int] = {}
        self._moves: dict[tuple[int, datetime, Member], list[int]] = {}
        self._hour = self._hour_ends = EPOCH

    def feed(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            before = self._members.get(fact.stream_id)
            after = _member_after(before, fact.event)
            if after is None or after == before:
                continue
            hour = self._hour_of(fact.recorded_at)
            self._moves.setdefault((fact.lane, hour, after), [0, 0])[0] += 1
            if before is not None:
                self._moves.setdefault((fact.lane, hour, before), [0, 0])[1] += 1
            self._members[fact.stream_id] = after
            self._lanes[fact.stream_id] = fact.lane

    def _hour_of(self, at: datetime) -> datetime:
        # Most facts have the same hour as the one before.
        if not self._hour <= at <= self._hour_ends:
            at = at.astimezone(UTC)
            self._hour = at.replace(minute=0, second=0, microsecond=0)
            self._hour_ends = at.replace(minute=59, second=59, microsecond=999_999)
        return self._hour

    def rows(self) -> Rows:
        moved = self._lanes.items()
        return {
            _FLEET.name: [(lane, hour, *member, *counts) for (lane, hour, member), counts in self._moves.items()],
            _MEMBER.name: [(lane, stream_id, *self._members[stream_id]) for stream_id, lane in moved],
        }


def _member_after(before: Member | None, event: e.AnyEvent) -> Member | None:
    """What the instance is counted under after `event`. None where its `InstanceRequested` was skipped by hand."""
    if isinstance(event, e.InstanceRequested):
        return Member(status=PENDING, provider="", region_id=event.region_id, tier_id=event.tier_id)
    if before is None:
        return None
    provider = event.provider if isinstance(event, e.PlacementChosen) else before.provider
    return Member(_STATUS_AFTER[type(event)], provider, before.region_id, before.tier_id)


def _known(row: Values) -> tuple[UUID, Member]:
    instance_id, status, provider, region_id, tier_id = (text.decode() for text in row if text is not None)
    return UUID(instance_id), Member(msgspec.convert(status, Status), provider, region_id, tier_id)


class Fleet:
    """Counts every change of status, by the hour."""

    name = "fleet"
    version = 1
    types = tuple(TAG_BY_NAME[kind.__name__] for kind in (e.InstanceRequested, *_STATUS_AFTER))
    payloads = True
    tables = (_FLEET, _MEMBER)
    ddl = _SQL

    def begin(self) -> FleetFold:
        return FleetFold({})

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        streams = {fact.stream_id: fact.lane for fact in facts}
        known = Statement(_MEMBERS, (array_literal(map(str, streams.values())), array_literal(map(str, streams))))
        fold = FleetFold(dict(map(_known, await read(known))))
        fold.feed(facts)
        rows = fold.rows()
        return [
            Statement(_ADD_MOVES, (records(_FLEET, rows),)),
            Statement(_SET_MEMBERS, (records(_MEMBER, rows),)),
        ]
