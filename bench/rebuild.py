"""Rebuilds of the `instance` read model from logs of several lengths, in turn with pyeventsourcing's catch-up.

`BENCH_EVENTS` in the environment sets the lengths, in about millions of events; `0.1,1` by default. A
log of more than a million is copied from the first million within the database (`multiply_log`) and not
compared with pyeventsourcing. `0.1,1,10` takes some twelve minutes, and 10 GB of disk.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from statistics import median
from typing import Final, NamedTuple

import psutil

from bench.processors import used_s
from bench.rebuild_eventsourcing import catch_up_per_s
from bench.rebuild_log import multiply_log, write_log
from bench.result import Comparison, Limit
from bench.services import Services
from projections.generations import Progress
from projections.processes import fold_in_processes
from projections.rebuild import ProgressCallbacks, prune, rebuild
from projections.registry import projections
from projections.report import Report

MILLIONS: Final = "0.1,1"
INSTANCES_PER_MILLION: Final = 100_000
WORKERS: Final = 2
ROUNDS: Final = 3
AGGREGATES: Final = 200

#: The most microseconds per event, at 300,000 events a second; and the same in processor time of two processors.
EVENT_US_MAX: Final = 1e6 / 300_000
EVENT_CPU_US_MAX: Final = 2 * EVENT_US_MAX
STOPPED_MS_MAX: Final = 250.0
TIMES_FASTER_MIN: Final = 100.0
#: The most that the time per event may grow by, as a factor, in a log ten times as long.
LINEAR_MAX: Final = 1.25
WORKER_MIB_MAX: Final = 512.0


class Round(NamedTuple):
    """One rebuild. `cpu_s`: processor time of all its processes; `fold_cpu_s`: until the last lane was folded.

    `peak`: the most bytes of memory that a worker was seen to hold.
    """

    report: Report
    cpu_s: float
    fold_cpu_s: float
    peak: int


def _ignore(_told: str | Progress) -> None:
    """Progress is not shown."""


UNSEEN: Final = ProgressCallbacks(phase=_ignore, folded=_ignore)


async def compare(services: Services) -> list[Comparison | Limit]:
    """Rebuild each log a few times, in turn with pyeventsourcing's catch-up. All rows are compared and swapped."""
    results: list[Comparison | Limit] = []
    before: tuple[int, float] | None = None
    for millions in map(float, os.environ.get("BENCH_EVENTS", MILLIONS).split(",")):
        url = await services.fresh_database("rebuild_ours", migrated=True)
        instances = round(min(millions, 1) * INSTANCES_PER_MILLION)
        events = await asyncio.to_thread(write_log, url, instances=instances)
        if millions > 1:
            events = await asyncio.to_thread(multiply_log, url, times=round(millions))
        rounds: list[Round] = []
        theirs: list[float] = []
        for number in range(ROUNDS + 1):
            await services.checkpoint()
            # The first rebuild fills the empty table. Later ones have rows to compare with, and a table to swap.
            done = await _rebuild(services, url, first=number == 0)
            if number:
                rounds.append(done)
            if number and millions <= 1:
                their_url = await services.fresh_database("rebuild_theirs", migrated=False)
                theirs.append(await asyncio.to_thread(catch_up_per_s, their_url, aggregates=AGGREGATES))
        if theirs:
            results.append(_comparison(events, rounds, theirs))
        results += _limits(events, rounds)
        peak_mib = max(one.peak for one in rounds) / 2**20
        results.append(Limit(name="memory of a worker, at its peak", value=peak_mib, target=WORKER_MIB_MAX, unit="MiB"))
        cpu_us = 1e6 * median(one.cpu_s for one in rounds) / events
        if before is not None:
            name = f"processor time an event, {events:,} events against {before[0]:,}"
            results.append(Limit(name=name, value=cpu_us / before[1], target=LINEAR_MAX, unit="x"))
        before = (events, cpu_us)
    return results


def _comparison(events: int, rounds: list[Round], theirs: list[float]) -> Comparison:
    ours = [events / one.report.total_s for one in rounds]
    return Comparison(
        name=f"{_name(events)}, the whole command, events/s",
        against="pyeventsourcing, projection catch-up",
        ours=median(ours),
        theirs=median(theirs),
        ratios=[a / b for a, b in zip(ours, theirs, strict=True)],
        target=TIMES_FASTER_MIN,
    )


def _name(events: int) -> str:
    return f"rebuild of `instance` from {events:,} events, {WORKERS} workers"


def _limits(events: int, rounds: list[Round]) -> list[Limit]:
    name = _name(events)
    reports = [one.report for one in rounds]

    def us(seconds: list[float]) -> float:
        return 1e6 * median(seconds) / events

    return [
        Limit(
            name=f"{name}, the whole command, an event",
            value=us([report.total_s for report in reports]),
            target=EVENT_US_MAX,
            unit="us",
        ),
        Limit(
            name=f"{name}, folding alone, an event",
            value=us([report.fold_s for report in reports]),
            target=EVENT_US_MAX,
            unit="us",
        ),
        Limit(
            name=f"{name}, folding alone, processor time an event",
            value=us([one.fold_cpu_s for one in rounds]),
            target=EVENT_CPU_US_MAX,
            unit="us",
        ),
        Limit(
            name=f"{name}, the whole command, processor time an event",
            value=us([one.cpu_s for one in rounds]),
            target=EVENT_CPU_US_MAX,
            unit="us",
        ),
        Limit(
            name="writers stopped at the swap",
            value=1000 * max(report.stopped_s or 0.0 for report in reports),
            target=STOPPED_MS_MAX,
            unit="ms",
        ),
    ]


async def _rebuild(services: Services, url: str, *, first: bool) -> Round:
    data, marks, peak = services.postgres.data, dict[str, float](), 0

    def phase(name: str) -> None:
        marks[name] = used_s(data)

    def folded(_: Progress) -> None:
        nonlocal peak
        peak = max([peak, *(_memory(child.pid) for child in multiprocessing.active_children())])

    phase("begin")
    report = await rebuilt(url, "instance", first=first, callbacks=ProgressCallbacks(phase=phase, folded=folded))
    phase("end")
    await prune(url, "instance")
    return Round(report, marks["end"] - marks["begin"], marks["indexing"] - marks["begin"], peak)


def _memory(pid: int | None) -> int:
    """Bytes of memory that a process holds; 0 once it has ended."""
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


async def rebuilt(url: str, name: str, *, first: bool, callbacks: ProgressCallbacks = UNSEEN) -> Report:
    """The report of a rebuild that was swapped; `first`: the tables are empty, and differ in every row."""
    folding = fold_in_processes(url, workers=WORKERS)
    report = await rebuild(url, projections()[name], folding=folding, callbacks=callbacks, accept_drift=first)
    assert report.stopped_s is not None, report.drift
    return report
