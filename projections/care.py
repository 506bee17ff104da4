"""Looking after projections: how far each is, what waits and why, and getting a parked lane going again."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Literal

import msgspec
from psycopg import AsyncConnection

from events.sql import Statements
from projections import generations
from projections.definition import Inline
from projections.errors import NotParked, UnknownProjection
from projections.generations import Generation
from projections.registry import projections

_SQL = Statements("projections", "care.sql")
_STATUS = _SQL["status"]
_KNOWN = _SQL["known"]
_TAKEN = _SQL["taken"]
_PARKED = _SQL["parked"]
_RECORD = _SQL["record"]
_SKIP = _SQL["skip"]
_RETRY = _SQL["retry"]
_INTERVENTIONS = _SQL["interventions"]

#: How long a rate is measured.
SAMPLE_S = 0.5


class LaneStatus(msgspec.Struct, frozen=True):
    """`behind_s`: the age of the first event that the projection has not taken. `error`: why the lane is parked, at the
    event after `seq`."""

    lane: int
    behind: int
    behind_s: float
    seq: int
    error: str | None


class ProjectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`code_version` None: a projection that this release no longer has. `version` None: one that was never built.

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


class Intervention(msgspec.Struct, frozen=True):
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
            )
        )
    return found


async def skip(connection: AsyncConnection, name: str, lane: int, *, actor: str, reason: str) -> Intervention:
    """Pass over the event at which the lane is parked, in this version and its rebuilds, and write down that it was."""
    return await _intervene(connection, "skip", name, lane, actor=actor, reason=reason)


async def retry(connection: AsyncConnection, name: str, lane: int, *, actor: str, reason: str) -> Intervention:
    """Have the event at which the lane is parked tried again now, and write down that it was."""
    return await _intervene(connection, "retry", name, lane, actor=actor, reason=reason)


async def interventions(connection: AsyncConnection, name: str) -> list[Intervention]:
    """What was done by hand, oldest first."""
    return [Intervention(*row) for row in await (await connection.execute(_INTERVENTIONS, (name,))).fetchall()]


async def _intervene(
    connection: AsyncConnection, action: Literal["skip", "retry"], name: str, lane: int, *, actor: str, reason: str
) -> Intervention:
    """Raises `UnknownProjection` and `NotParked`."""
    async with connection.transaction():
        live = await generations.served(connection, name)
        if live is None:
            raise UnknownProjection(name)
        row = await (await connection.execute(_PARKED, {"name": name, "lane": lane})).fetchone()
        if row is None:
            raise NotParked(name, lane)
        what = {"name": name, "version": live.version, "lane": lane, "seq": row[0], "error": row[1], "action": action}
        await connection.execute(_RECORD, {**what, "actor": actor, "reason": reason})
        await connection.execute(_SKIP if action == "skip" else _RETRY, what)
    return (await interventions(connection, name))[-1]


async def _rates(connection: AsyncConnection, sample_s: float) -> dict[str, float]:
    """Events a second by follower, over `sample_s`; the log's own under an empty name."""
    before, began_s = dict(await (await connection.execute(_TAKEN)).fetchall()), time.perf_counter()
    await asyncio.sleep(sample_s)
    after, took_s = dict(await (await connection.execute(_TAKEN)).fetchall()), time.perf_counter() - began_s
    return {name: (int(seq) - int(before.get(name, 0))) / took_s for name, seq in after.items()}
