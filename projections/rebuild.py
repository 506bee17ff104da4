"""Rebuild a projection without downtime: fold the log into a new generation, catch up, compare, swap. Or only compare.

All progress is in the database: whoever starts the same rebuild again after a kill continues where that was. One
rebuild per projection runs at a time (`projections/rebuild_lock.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

from psycopg import AsyncConnection

from events.pacing import Pace
from projections import generations
from projections.candidate import Candidate
from projections.definition import Inline, Projection
from projections.drift import Comparison
from projections.errors import LiveIncomplete, NothingToRollBackTo, Outdated, ParityMismatch
from projections.generations import Generation, Progress
from projections.rebuild_lock import check_rebuild_lock, connect, rebuild_lock
from projections.report import Report
from projections.swap import SwapResult, swap
from projections.swap_preparation import catch_up, compare_with_live, prepare_swap

Folding = Callable[[Projection, Generation, Callable[[], Awaitable[Progress]]], Awaitable[None]]
"""Folds all lanes of the build. It may call the third argument for the progress at any time. Raises `FoldFailed`."""


class ProgressCallbacks(NamedTuple):
    """Callbacks for the progress: `phase(text)` when a phase begins, `folded(progress)` during the fold."""

    phase: Callable[[str], None]
    folded: Callable[[Progress], None]


async def rebuild(
    database_url: str,
    projection: Projection,
    *,
    folding: Folding,
    callbacks: ProgressCallbacks,
    accept_drift: bool = False,
    full_speed: bool = False,
) -> Report:
    """Build the next generation of `projection` and make it live. Connects as the tables' owner.

    If live tables drifted from the log, the report says where, and nothing is swapped unless `accept_drift`: then the
    build replaces them all the same. Without a swap the build is kept, so that the next try need not fold it again.
    Raises `RebuildBusy`, `Outdated`, `LiveIncomplete` unless `accept_drift`, `NamesTaken`, `WritersNotStopped`,
    `RebuildLockLost`, `SwapUnknown` and what folding raises.
    """
    pace = Pace(full_speed=full_speed)
    async with rebuild_lock(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.inspect_live(connection, projection.name)
        if missing and not accept_drift:
            raise LiveIncomplete(projection.name, missing)
        build, report = await _build(connection, projection, folding, callbacks, pace, live=live, drops_others=True)
        report.missing = missing
        callbacks.phase("comparing")
        candidate = Candidate.of(projection, build, live, pace)
        async with _analyzing(database_url, build):
            await _compare(connection, candidate, report)
        if report.drifted and not accept_drift:
            return report
        callbacks.phase("swapping")
        if report.drifted:
            # Another comparison would only find the accepted drift again.
            candidate = candidate._replace(unverified=None)
        try:
            swapped = await _swap(database_url, connection, candidate)
        except ParityMismatch as error:
            _record(report, error.comparison)
            if not accept_drift:
                return report
            swapped = await _swap(database_url, connection, candidate._replace(unverified=None))
        report.rested_s = pace.rested_s
        _finish(report, swapped, began_s)
        return report


async def dry_run(
    database_url: str,
    projection: Projection,
    *,
    folding: Folding,
    callbacks: ProgressCallbacks,
    full_speed: bool = False,
) -> Report:
    """Build as `rebuild` does, compare with the live tables, drop the build. Changes no live table and no other build.

    A build that an earlier run had begun is continued and kept. Raises `RebuildBusy`, `Outdated`, `LiveIncomplete`,
    `NamesTaken` and what folding raises.
    """
    pace = Pace(full_speed=full_speed)
    async with rebuild_lock(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.inspect_live(connection, projection.name)
        if missing:
            raise LiveIncomplete(projection.name, missing)
        build, report = await _build(connection, projection, folding, callbacks, pace, live=live, drops_others=False)
        callbacks.phase("comparing")
        try:
            await _compare(connection, Candidate.of(projection, build, live, pace), report)
        finally:
            # A build that an earlier run had begun is kept for that run to be continued.
            if not report.resumed:
                await generations.drop(connection, build)
        report.total_s = time.perf_counter() - began_s
        return report


async def rollback(database_url: str, projection: Projection) -> Report:
    """Make the previous generation live again, caught up with the log.

    The present one becomes the previous, so that a second rollback undoes the first. `projection` must have the version
    of the previous generation. Nothing is compared: a rollback is made because the live tables are wrong. Raises
    `RebuildBusy`, `NothingToRollBackTo`, `NamesTaken`, `WritersNotStopped`, `RebuildLockLost` and `SwapUnknown`.
    """
    async with rebuild_lock(database_url, projection.name) as connection:
        began_s = time.perf_counter()
        live, missing = await generations.inspect_live(connection, projection.name)
        earlier = await generations.last_replaced(connection, projection.name)
        if live is None or earlier is None:
            raise NothingToRollBackTo(projection.name, "there is no earlier generation")
        if earlier.version != projection.version:
            reason = f"the earlier generation has version {earlier.version}, which this release does not know"
            raise NothingToRollBackTo(projection.name, reason)
        if gone := await generations.tables_missing(connection, earlier):
            raise NothingToRollBackTo(
                projection.name, f"the earlier generation is incomplete: {', '.join(gone)} is missing"
            )
        await generations.create_missing_checkpoints(connection, earlier)
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
        swapped = await _swap(database_url, connection, candidate)
        report.events = swapped.prepared
        _finish(report, swapped, began_s)
        return report


async def prune(database_url: str, name: str) -> list[Generation]:
    """Drop every generation of the projection that is not live, unfinished builds too. Returns the dropped ones.

    Raises `RebuildBusy` and `GenerationInUse`.
    """
    async with rebuild_lock(database_url, name) as connection:
        found = await generations.all_in_states(connection, "previous", *generations.UNFINISHED)
        dropped = [generation for generation in found if generation.name == name]
        for generation in dropped:
            await generations.drop(connection, generation)
        live = (await generations.inspect_live(connection, name)).generation
        if live is not None:
            await generations.drop_schema_left_behind(connection, live)
        return dropped


async def _build(
    connection: AsyncConnection,
    projection: Projection,
    folding: Folding,
    callbacks: ProgressCallbacks,
    pace: Pace,
    *,
    live: Generation | None,
    drops_others: bool,
) -> tuple[Generation, Report]:
    """The next generation, folded and indexed: a new build, or one that an earlier run has left. Raises `Outdated`.

    `drops_others`: whether to drop all other unfinished builds of the projection.
    """
    if live is not None and live.version > projection.version:
        raise Outdated(projection.name, projection.version, live=live.version)
    resumed = await _resumable(connection, projection, live, drops_others=drops_others)
    build = begun = resumed or await generations.begin(connection, projection)
    began_s = time.perf_counter()

    async def progress() -> Progress:
        now = await generations.progress(connection, begun)
        callbacks.folded(now)
        return now

    report = Report(
        name=projection.name,
        version=projection.version,
        version_before=None if live is None else live.version,
        generation=build.number,
        generation_before=None if live is None else live.number,
        resumed=resumed is not None,
        events=(await progress()).events,
    )
    if build.state == "folding":
        callbacks.phase("folding")
        await folding(projection, build, progress)
        report.fold_s = time.perf_counter() - began_s
        # A first look at the heads: the rest after indexing can then tell how much is being written.
        await pace.rest_async(connection)
        callbacks.phase("indexing")
        began_s = time.perf_counter()
        build = await generations.index(connection, projection, build)
        report.index_s = time.perf_counter() - began_s
    return build, report


async def _resumable(
    connection: AsyncConnection, projection: Projection, live: Generation | None, *, drops_others: bool
) -> Generation | None:
    """The newest build that can be continued, if there is one. `drops_others`: whether to drop all others."""
    found = None
    for build in await generations.unfinished(connection, projection.name):
        if found is None and await _is_resumable(connection, build, projection, live):
            found = build
        elif drops_others:
            await generations.drop(connection, build)
    return found


async def _is_resumable(
    connection: AsyncConnection, build: Generation, projection: Projection, live: Generation | None
) -> bool:
    """Whether a build that an earlier run has left can be continued, and compared with the live tables."""
    if build.version != projection.version:
        return False
    # Where one of its tables is gone, the name would mean the live table, and what the build lacks would be added there.
    if await generations.tables_missing(connection, build):
        return False
    return isinstance(projection, Inline) or live is None or not await generations.is_ahead(connection, build)


async def _swap(database_url: str, connection: AsyncConnection, candidate: Candidate) -> SwapResult:
    """`connection`: that of the rebuild lock."""
    return await swap(
        partial(connect, database_url), candidate, prepare=partial(_prepare, candidate=candidate, locked=connection)
    )


async def _prepare(swapping: AsyncConnection, candidate: Candidate, *, locked: AsyncConnection) -> int:
    """Prepare a try of the swap. Returns how many events were applied. Raises `RebuildLockLost` and `ParityMismatch`.

    `locked`: the connection of the rebuild lock. Each try has a session of its own, which the loss of that one does not end.
    """
    await check_rebuild_lock(locked, candidate.build.name)
    events = await prepare_swap(swapping, candidate)
    # Again, because that may have taken minutes.
    await check_rebuild_lock(locked, candidate.build.name)
    return events


async def _compare(connection: AsyncConnection, candidate: Candidate, report: Report) -> None:
    """Compare all rows, and rest after each long step: indexing, catching up, and the comparison."""
    began_s = time.perf_counter()
    await candidate.pace.rest_async(connection)
    await catch_up(connection, candidate)
    _record(report, await compare_with_live(connection, candidate, everything=True))
    await candidate.pace.rest_async(connection)
    report.compare_s, report.rested_s = time.perf_counter() - began_s, candidate.pace.rested_s


@asynccontextmanager
async def _analyzing(database_url: str, build: Generation) -> AsyncGenerator[None]:
    """Analyse the build's tables meanwhile, on a separate connection. If the body fails, the analysis is cancelled."""
    async with await connect(database_url) as connection:
        analysis = asyncio.create_task(generations.analyze(connection, build))
        try:
            yield
        except BaseException:
            # Cancelling the task cancels the statement in the database too, so that this does not wait for its end.
            analysis.cancel()
            await asyncio.wait((analysis,))
            raise
        await analysis


def _record(report: Report, comparison: Comparison) -> None:
    report.rows_compared, report.drifted, report.drift = comparison.rows, comparison.drifted, comparison.drift
    report.left_out = comparison.left_out


def _finish(report: Report, swapped: SwapResult, began_s: float) -> None:
    report.swapped, report.stopped_s, report.tries = True, swapped.stopped_s, swapped.tries
    report.total_s = time.perf_counter() - began_s
