"""Operate projections: show how far each is and why a lane is parked, and get a parked lane going again."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec
from psycopg import AsyncConnection

from events.sql import Statements
from projections import generations
from projections.definition import Inline
from projections.errors import NotParked, NotSkipped, NotToBeSkipped, ParkedElsewhere, RebuildBusy
from projections.generations import Generation
from projections.rebuild_lock import take_rebuild_lock
from projections.registry import projections

_SQL = Statements("projections", "operations.sql")
_STATUS = _SQL["status"]
_KNOWN = _SQL["known"]
_APPLIED_EVENTS = _SQL["applied_events"]
_PARKED = _SQL["parked"]
_APPLIED_BY_BUILD = _SQL["applied_by_build"]
_RECORD = _SQL["record"]
_SKIPPED = _SQL["skipped"]
_SKIP = _SQL["skip"]
_RETRY = _SQL["retry"]

#: How long event rates are measured, in seconds.
SAMPLE_S = 0.5


class LaneStatus(msgspec.Struct, frozen=True):
    """How far a projection is in a lane.

    `behind`: how many events it has not applied. `behind_s`: the age of the first of these, in seconds. `seq`: the last
    one that it has applied. `error` and `event`: why the lane is parked, and at which event; None where it is not.
    """

    lane: int
    behind: int
    behind_s: float
    seq: int
    error: str | None
    event: int | None


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one projection.

    `code_version`: None for a projection that this release no longer has. `version`: None for one that was never built.
    `missing`: what somebody has removed of the live generation, in words. `events_per_s`: how many events per second it
    applied during the sample. An inline projection has no `lanes`, because it is written with the log and is never
    behind it.
    """

    name: str
    kind: Literal["inline", "followed"]
    code_version: int | None
    version: int | None
    generation: int | None
    swapped_at: datetime | None
    events_per_s: float
    lanes: list[LaneStatus]
    others: list[Generation]
    missing: list[str]

    @property
    def behind(self) -> int:
        return sum(lane.behind for lane in self.lanes)

    @property
    def behind_s(self) -> float:
        return max((lane.behind_s for lane in self.lanes), default=0.0)

    @property
    def parked(self) -> list[LaneStatus]:
        return [lane for lane in self.lanes if lane.error is not None]

    @property
    def outdated(self) -> bool:
        """Whether a rebuild would bring a newer version, or the first one of a projection that was never built."""
        return self.code_version is not None and (self.version is None or self.code_version > self.version)


class Author(NamedTuple):
    """Who intervenes, and why."""

    actor: str
    reason: str


class Intervention(msgspec.Struct, frozen=True):
    """A recorded intervention. `error`: the error the event was parked with; empty where it was not parked."""

    name: str
    version: int
    lane: int
    seq: int
    action: str
    error: str
    actor: str
    reason: str
    made_at: datetime


async def status(connection: AsyncConnection, *, sample_s: float = SAMPLE_S) -> list[ProjectionStatus]:
    """The status of every projection that the code or the database knows, by name. Takes `sample_s`."""
    rates = await _rates(connection, sample_s)
    known = {row[0]: row[1:] for row in await (await connection.execute(_KNOWN)).fetchall()}
    others = await generations.all_in_states(connection, "folding", "indexed", "previous")
    code = projections()
    found: list[ProjectionStatus] = []
    for name in sorted(code.keys() | known.keys()):
        version, generation, swapped_at = known.get(name, (None, None, None))
        projection = code.get(name)
        inline = isinstance(projection, Inline)
        wanted = {"name": name, "followed": projection is not None and not inline}
        lanes = await (await connection.execute(_STATUS, wanted)).fetchall()
        found.append(
            ProjectionStatus(
                name=name,
                kind="inline" if inline else "followed",
                code_version=None if projection is None else projection.version,
                version=version,
                generation=generation,
                swapped_at=swapped_at,
                events_per_s=rates.get("" if inline else name, 0.0),
                lanes=[LaneStatus(*lane) for lane in lanes],
                others=[other for other in others if other.name == name],
                missing=(await generations.inspect_live(connection, name)).missing,
            )
        )
    return found


async def skip(connection: AsyncConnection, name: str, lane: int, seq: int, by: Author) -> Intervention:
    """Skip the event at which the lane is parked, in the live version and its rebuilds. Records the intervention.

    `seq`: the number of that event. Raises `NotParked` and `ParkedElsewhere`.
    """
    async with connection.transaction():
        place = await _parked(connection, name, lane, seq=seq)
        await connection.execute(_SKIP, place)
        return await _record(connection, "skip", place, by)


async def skip_in_build(
    connection: AsyncConnection, name: str, lane: int, seq: int, by: Author, *, version: int
) -> Intervention:
    """Have an unfinished build skip the event `seq`, which it has not applied yet. Records the intervention.

    `version` may be the live version too, where a skip that was taken back proves to be needed after all. Raises
    `RebuildBusy` while a rebuild runs, and `NotToBeSkipped`.
    """
    async with connection.transaction():
        await take_rebuild_lock(connection, name)
        builds = await generations.unfinished(connection, name)
        build = next((one for one in builds if one.version == version), None)
        if build is None:
            raise NotToBeSkipped(name, version, "it has no unfinished build")
        where = build.key | {"follower": build.follower, "lane": lane}
        row = await (await connection.execute(_APPLIED_BY_BUILD, where)).fetchone()
        if row is None:
            raise RebuildBusy(name)
        applied, head = row
        if not applied < seq <= head:
            reason = (
                f"the build has already applied event {seq} of lane {lane}"
                if seq <= applied
                else f"lane {lane} ends with event {head}"
            )
            raise NotToBeSkipped(name, version, reason)
        place = {"name": name, "version": version, "lane": lane, "seq": seq, "error": ""}
        return await _record(connection, "skip", place, by)


async def unskip(connection: AsyncConnection, name: str, lane: int, seq: int, by: Author) -> Intervention:
    """Have the next rebuild of the live version apply a skipped event after all. Records the intervention.

    Drops an interrupted build of that version, because it may have folded lanes without the event. Raises
    `RebuildBusy` while a rebuild runs, and `NotSkipped`.
    """
    async with connection.transaction():
        await take_rebuild_lock(connection, name)
        live = await generations.live_generation(connection, name)
        if live is None:
            raise NotSkipped(name, lane, seq)
        place = {"name": name, "version": live.version, "lane": lane, "seq": seq}
        row = await (await connection.execute(_SKIPPED, place)).fetchone()
        if row is None:
            raise NotSkipped(name, lane, seq)
        for build in await generations.unfinished(connection, name):
            if build.version == live.version:
                await generations.drop(connection, build)
        return await _record(connection, "unskip", {**place, "error": row[0]}, by)


async def retry(
    connection: AsyncConnection, name: str, lane: int, by: Author, *, seq: int | None = None
) -> Intervention:
    """Have the event at which the lane is parked tried again at once. Records the intervention.

    `seq`: the event at which the lane must be parked, if given. Raises `NotParked` and
    `ParkedElsewhere`.
    """
    async with connection.transaction():
        place = await _parked(connection, name, lane, seq=seq)
        await connection.execute(_RETRY, place)
        return await _record(connection, "retry", place, by)


async def _parked(connection: AsyncConnection, name: str, lane: int, *, seq: int | None) -> dict[str, Any]:
    """The event at which the lane is parked, with its checkpoint locked until the end of the transaction.

    `seq`: the event at which it must be parked, if given.
    """
    live = await generations.live_generation(connection, name)
    row = await (await connection.execute(_PARKED, {"name": name, "lane": lane})).fetchone()
    if live is None or row is None:
        raise NotParked(name, lane)
    if seq not in (None, row[0]):
        raise ParkedElsewhere(name, lane, at=row[0], asked=seq)
    return {"name": name, "version": live.version, "lane": lane, "seq": row[0], "error": row[1]}


async def _record(connection: AsyncConnection, action: str, place: dict[str, Any], by: Author) -> Intervention:
    what = {**place, "action": action, "actor": by.actor, "reason": by.reason}
    row = await (await connection.execute(_RECORD, what)).fetchone()
    assert row is not None, "it was inserted"
    return Intervention(*row)


async def _rates(connection: AsyncConnection, sample_s: float) -> dict[str, float]:
    """Events per second by follower, measured over `sample_s`. The log's own rate has an empty name."""
    before, began_s = dict(await (await connection.execute(_APPLIED_EVENTS)).fetchall()), time.perf_counter()
    await asyncio.sleep(sample_s)
    after, took_s = dict(await (await connection.execute(_APPLIED_EVENTS)).fetchall()), time.perf_counter() - began_s
    return {name: (int(seq) - int(before.get(name, 0))) / took_s for name, seq in after.items()}
