"""A rebuild that nobody notices: fold the log into the next generation, catch up, compare, swap; or compare only.

Everything that is done is in the database: whoever starts the same rebuild again after a kill, at whatever point, goes on
from there. One rebuild of a projection runs at a time (`projections/turn.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import msgspec
from psycopg import AsyncConnection

from events.pacing import Pace
from projections import generations
from projections.approach import approach, come_near, verify
from projections.candidate import Candidate
from projections.definition import Inline, Projection
from projections.drift import Comparison, Drift
from projections.errors import LiveIncomplete, NothingToRollBackTo, Outdated, ParityMismatch
from projections.generations import Generation, Progress
from projections.swap import Swapped, swap
from projections.turn import connect, turn

Folding = Callable[[Projection, Generation, Callable[[], Awaitable[Progress]]], Awaitable[None]]
"""Has all lanes of the build folded; asks for the progress as often as it likes. Raises `FoldFailed`."""


class Report(msgspec.Struct, kw_only=True):
    """What a rebuild did. Rows are compared at one place in the log; `drift` holds the first that differ. `left_out` are the tables
    that could not be compared, because other columns tell their rows apart than in the version that is live. `missing`: what was
    gone of what was live, in words. `generation_before`: what was live when it began, which a swap keeps for a rollback.

    `swapped`: whether the generation is live now. `stopped_s`: how long writers (for a followed projection: its followers) stood
    still for that; None where nothing was swapped. `rested_s`: how long it rested while others wrote, its folding aside.
    """

    name: str
    version: int
    version_before: int | None
    generation: int
    generation_before: int | None
    resumed: bool
    events: int
    fold_s: float = 0.0
    index_s: float = 0.0
    compare_s: float = 0.0
    rows_compared: int = 0
    drifted: int = 0
    drift: list[Drift] = []
    left_out: list[str] = []
    missing: list[str] = []
    swapped: bool = False
    stopped_s: float | None = None
    tries: int = 0
    rested_s: float = 0.0
    total_s: float = 0.0


class Steps(NamedTuple):
    """What is to be told while it goes on: `phase(text)` and `folded(progress)`."""

    phase: Callable[[str], None]
    folded: Callable[[Progress], None]


async def rebuild(
    database_url: str,
    projection: Projection,
    *,
    folding: Folding,
    steps: Steps,
    accept_drift: bool = False,
    full_speed: bool = False,
) -> Report:
    """Build the next generation of `projection` and put it in place. Connects as the tables' owner.

    Where live tables drifted from the log, the report says where, and nothing is swapped unless `accept_drift`: then the log wins. The
    build is kept, so trying again folds nothing twice. Raises `RebuildBusy`, `Outdated`, `LiveIncomplete` unless `accept_drift`,
    `NamesTaken`, `WritersNotStopped`, `SwapUnknown` and what folding raises.
    """
    pace = Pace(full_speed=full_speed)
    async with turn(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.live(connection, projection.name)
        if missing and not accept_drift:
            raise LiveIncomplete(projection.name, missing)
        build, report = await _build(connection, projection, folding, steps, pace, live=live, drops_others=True)
        report.missing = missing
        steps.phase("comparing")
        candidate = Candidate.of(projection, build, live, pace)
        async with _analyzing(database_url, build):
            await _compare(connection, candidate, report)
        if report.drifted and not accept_drift:
            return report
        steps.phase("swapping")
        if report.drifted:
            # What has drifted and is accepted would only be found again.
            candidate = candidate._replace(unverified=None)
        try:
            swapped = await _swap(database_url, candidate)
        except ParityMismatch as error:
            _record(report, error.comparison)
            if not accept_drift:
                return report
            swapped = await _swap(database_url, candidate._replace(unverified=None))
        report.rested_s = pace.rested_s
        _finish(report, swapped, began_s)
        return report


async def dry_run(
    database_url: str, projection: Projection, *, folding: Folding, steps: Steps, full_speed: bool = False
) -> Report:
    """Build as `rebuild` does, compare with what is live, and drop the build, unless it is one that was broken off before and is
    only gone on with. Nothing that is served changes, and no other build either. Raises `RebuildBusy`, `Outdated`, `LiveIncomplete`,
    `NamesTaken` and what folding raises.
    """
    pace = Pace(full_speed=full_speed)
    async with turn(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.live(connection, projection.name)
        if missing:
            raise LiveIncomplete(projection.name, missing)
        build, report = await _build(connection, projection, folding, steps, pace, live=live, drops_others=False)
        steps.phase("comparing")
        try:
            await _compare(connection, Candidate.of(projection, build, live, pace), report)
        finally:
            # What somebody else has begun is theirs to go on with.
            if not report.resumed:
                await generations.drop(connection, build)
        report.total_s = time.perf_counter() - began_s
        return report


async def rollback(database_url: str, projection: Projection) -> Report:
    """Put the previous generation back in its place, caught up with the log; the present one becomes the previous, so
    that a second rollback undoes the first.

    `projection` must have the version of the previous generation. Nothing is compared: a rollback is made because what
    is live is wrong. Raises `RebuildBusy`, `NothingToRollBackTo`, `NamesTaken`, `WritersNotStopped` and `SwapUnknown`.
    """
    async with turn(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.live(connection, projection.name)
        earlier = await generations.last_replaced(connection, projection.name)
        if live is None or earlier is None:
            raise NothingToRollBackTo(projection.name, "there is no earlier generation")
        if earlier.version != projection.version:
            reason = f"the earlier generation is of version {earlier.version}, which this code cannot follow"
            raise NothingToRollBackTo(projection.name, reason)
        if gone := await generations.tables_missing(connection, earlier):
            raise NothingToRollBackTo(projection.name, f"the earlier generation lacks {', '.join(gone)}")
        await generations.enter(connection, earlier)
        report = Report(
            name=projection.name,
            version=earlier.version,
            version_before=live.version,
            generation=earlier.number,
            generation_before=live.number,
            resumed=False,
            events=0,
            missing=missing,
        )
        candidate = Candidate.of(projection, earlier, live, Pace(full_speed=True))._replace(unverified=None)

        async def near(swapping: AsyncConnection) -> None:
            report.events += await approach(swapping, candidate)

        _finish(report, await swap(partial(connect, database_url), candidate, near=near), began_s)
        return report


async def prune(database_url: str, name: str) -> list[Generation]:
    """Drop every generation of the projection that is not live, unfinished builds too. Raises `RebuildBusy` and
    `GenerationInUse`.
    """
    async with turn(database_url, name) as connection:
        found = await generations.all_in(connection, "previous", *generations.UNFINISHED)
        dropped = [generation for generation in found if generation.name == name]
        for generation in dropped:
            await generations.drop(connection, generation)
        live = (await generations.live(connection, name)).generation
        if live is not None:
            await generations.drop_schema_left_behind(connection, live)
        return dropped


async def _build(
    connection: AsyncConnection,
    projection: Projection,
    folding: Folding,
    steps: Steps,
    pace: Pace,
    *,
    live: Generation | None,
    drops_others: bool,
) -> tuple[Generation, Report]:
    """The next generation, folded and indexed: a new one, or what an earlier run has left of it. Other builds are in nobody's way."""
    if live is not None and live.version > projection.version:
        raise Outdated(projection.name, projection.version, live=live.version)
    build = None
    for one in await generations.unfinished(connection, projection.name):
        if build is None and await _fits(connection, one, projection, live):
            build = one
        elif drops_others:
            await generations.drop(connection, one)
    resumed = build is not None
    if build is None:
        build = await generations.begin(connection, projection)
    began_s = time.perf_counter()
    folded = build

    async def progress() -> Progress:
        now = await generations.progress(connection, folded)
        steps.folded(now)
        return now

    report = Report(
        name=projection.name,
        version=projection.version,
        version_before=None if live is None else live.version,
        generation=build.number,
        generation_before=None if live is None else live.number,
        resumed=resumed,
        events=(await progress()).events,
    )
    if build.state == "folding":
        steps.phase("folding")
        await folding(projection, build, progress)
        report.fold_s = time.perf_counter() - began_s
        # A first look, so that it is known behind the indexes how much is being written.
        await pace.rest_async(connection)
        steps.phase("indexing")
        began_s = time.perf_counter()
        build = await generations.index(connection, projection, build)
        report.index_s = time.perf_counter() - began_s
    return build, report


async def _fits(
    connection: AsyncConnection, build: Generation, projection: Projection, live: Generation | None
) -> bool:
    """Whether what an earlier run has left can be gone on with, and compared with what is live."""
    if build.version != projection.version:
        return False
    return isinstance(projection, Inline) or live is None or not await generations.is_ahead(connection, build)


async def _swap(database_url: str, candidate: Candidate) -> Swapped:
    return await swap(partial(connect, database_url), candidate, near=partial(approach, candidate=candidate))


async def _compare(connection: AsyncConnection, candidate: Candidate, report: Report) -> None:
    """Everything, with rests behind what takes long: the indexes, what was appended since, and the comparison."""
    began_s = time.perf_counter()
    await candidate.pace.rest_async(connection)
    await come_near(connection, candidate)
    _record(report, await verify(connection, candidate, everything=True))
    await candidate.pace.rest_async(connection)
    report.compare_s, report.rested_s = time.perf_counter() - began_s, candidate.pace.rested_s


@asynccontextmanager
async def _analyzing(database_url: str, build: Generation) -> AsyncGenerator[None]:
    """Meanwhile the build's tables are analysed, on a connection of its own."""
    async with await connect(database_url) as connection:
        analysis = asyncio.create_task(generations.analyze(connection, build))
        try:
            yield
        except BaseException:
            # Whoever is told to stop does not wait for it: cancelled, it is cancelled in the database, too.
            analysis.cancel()
            await asyncio.wait((analysis,))
            raise
        await analysis


def _record(report: Report, comparison: Comparison) -> None:
    report.rows_compared, report.drifted, report.drift = comparison.rows, comparison.drifted, comparison.drift
    report.left_out = comparison.left_out


def _finish(report: Report, swapped: Swapped, began_s: float) -> None:
    report.swapped, report.stopped_s, report.tries = True, swapped.stopped_s, swapped.tries
    report.total_s = time.perf_counter() - began_s
