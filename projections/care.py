"""Looking after projections: how far each is, what waits and why, and getting a parked lane going again."""

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
from projections.errors import NotParked, NotSkipped, NotToBeSkipped, ParkedElsewhere, RebuildBusy, UnknownProjection
from projections.generations import Generation
from projections.registry import projections
from projections.turn import take_turn

_SQL = Statements("projections", "care.sql")
_STATUS = _SQL["status"]
_KNOWN = _SQL["known"]
_TAKEN = _SQL["taken"]
_PARKED = _SQL["parked"]
_TAKEN_BY_BUILD = _SQL["taken_by_build"]
_RECORD = _SQL["record"]
_SKIPPED = _SQL["skipped"]
_SKIP = _SQL["skip"]
_RETRY = _SQL["retry"]

#: How long a rate is measured.
SAMPLE_S = 0.5


class LaneStatus(msgspec.Struct, frozen=True):
    """`behind_s`: the age of the first event that the projection has not taken. `seq`: the last one that it has. `error`: why the
    lane is parked, at the event of the number `event`; None where it is not."""

    lane: int
    behind: int
    behind_s: float
    seq: int
    error: str | None
    event: int | None


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`code_version` None: a projection that this release no longer has. `version` None: one that was never built.

    `missing`: what somebody has taken away of what is live, in words.
    `events_per_s`: how many events it took a second, just now. Inline ones have no lanes of their own: they are written
    with the log and never behind it.
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
        """Whether the code has a newer version, or a projection that was never built: a rebuild brings it."""
        return self.code_version is not None and (self.version is None or self.code_version > self.version)


class By(NamedTuple):
    """Who does something by hand, and why."""

    actor: str
    reason: str


class Intervention(msgspec.Struct, frozen=True):
    """`error`: what the event was parked with; empty where it was not."""

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
    """Every projection that the code or the database knows, by name. Takes `sample_s`."""
    rates = await _rates(connection, sample_s)
    known = {row[0]: row[1:] for row in await (await connection.execute(_KNOWN)).fetchall()}
    others = await generations.all_in(connection, "folding", "indexed", "previous")
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
                missing=(await generations.live(connection, name)).missing,
            )
        )
    return found


async def skip(connection: AsyncConnection, name: str, lane: int, seq: int, by: By) -> Intervention:
    """Pass over the event `seq`, at which the lane is parked, in this version and its rebuilds, and write down that it was.

    Raises `UnknownProjection`, `NotParked` and `ParkedElsewhere`.
    """
    async with connection.transaction():
        place = await _parked(connection, name, lane, seq=seq)
        await connection.execute(_SKIP, place)
        return await _record(connection, "skip", place, by)


async def skip_in_build(
    connection: AsyncConnection, name: str, lane: int, seq: int, by: By, *, version: int
) -> Intervention:
    """Have an unfinished build pass over the event `seq`, which it has not taken yet, and write down that it does. One of the live
    version too: a skip that was taken back may prove to be needed after all.

    Raises `RebuildBusy` while somebody builds, and `NotToBeSkipped`.
    """
    async with connection.transaction():
        await take_turn(connection, name)
        builds = await generations.unfinished(connection, name)
        build = next((one for one in builds if one.version == version), None)
        if build is None:
            raise NotToBeSkipped(name, version, "no build of it is under way")
        where = build.key | {"follower": build.follower, "lane": lane}
        row = await (await connection.execute(_TAKEN_BY_BUILD, where)).fetchone()
        if row is None:
            raise RebuildBusy(name)
        taken, head = row
        if not taken < seq <= head:
            reason = (
                f"the build has event {seq} of lane {lane}" if seq <= taken else f"lane {lane} ends with event {head}"
            )
            raise NotToBeSkipped(name, version, reason)
        place = {"name": name, "version": version, "lane": lane, "seq": seq, "error": ""}
        return await _record(connection, "skip", place, by)


async def unskip(connection: AsyncConnection, name: str, lane: int, seq: int, by: By) -> Intervention:
    """Have the next rebuild of the live version take the event after all, and write down that it will.

    A build of that version that was broken off is dropped: lanes of it may be folded without the event. Raises
    `UnknownProjection`, `RebuildBusy` while somebody builds, and `NotSkipped`.
    """
    async with connection.transaction():
        await take_turn(connection, name)
        live = await _served(connection, name)
        place = {"name": name, "version": live.version, "lane": lane, "seq": seq}
        row = await (await connection.execute(_SKIPPED, place)).fetchone()
        if row is None:
            raise NotSkipped(name, lane, seq)
        for build in await generations.unfinished(connection, name):
            if build.version == live.version:
                await generations.drop(connection, build)
        return await _record(connection, "unskip", {**place, "error": row[0]}, by)


async def retry(connection: AsyncConnection, name: str, lane: int, by: By, *, seq: int | None = None) -> Intervention:
    """Have the event at which the lane is parked tried again now, and write down that it was. `seq`: where it must be.

    Raises `UnknownProjection`, `NotParked` and `ParkedElsewhere`.
    """
    async with connection.transaction():
        place = await _parked(connection, name, lane, seq=seq)
        await connection.execute(_RETRY, place)
        return await _record(connection, "retry", place, by)


async def _served(connection: AsyncConnection, name: str) -> Generation:
    live = await generations.served(connection, name)
    if live is None:
        raise UnknownProjection(name)
    return live


async def _parked(connection: AsyncConnection, name: str, lane: int, *, seq: int | None) -> dict[str, Any]:
    """The place of the event at which the lane is parked, held until the transaction ends. `seq`: which one it must be, if any."""
    live = await _served(connection, name)
    row = await (await connection.execute(_PARKED, {"name": name, "lane": lane})).fetchone()
    if row is None:
        raise NotParked(name, lane)
    if seq not in (None, row[0]):
        raise ParkedElsewhere(name, lane, at=row[0], asked=seq)
    return {"name": name, "version": live.version, "lane": lane, "seq": row[0], "error": row[1]}


async def _record(connection: AsyncConnection, action: str, place: dict[str, Any], by: By) -> Intervention:
    what = {**place, "action": action, "actor": by.actor, "reason": by.reason}
    row = await (await connection.execute(_RECORD, what)).fetchone()
    assert row is not None, "it was inserted"
    return Intervention(*row)


async def _rates(connection: AsyncConnection, sample_s: float) -> dict[str, float]:
    """Events a second by follower, over `sample_s`; the log's own under an empty name."""
    before, began_s = dict(await (await connection.execute(_TAKEN)).fetchall()), time.perf_counter()
    await asyncio.sleep(sample_s)
    after, took_s = dict(await (await connection.execute(_TAKEN)).fetchall()), time.perf_counter() - began_s
    return {name: (int(seq) - int(before.get(name, 0))) / took_s for name, seq in after.items()}
