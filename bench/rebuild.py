"""Rebuild of the `instance` read model from the log, and pyeventsourcing's catch-up of a projection on the same machine.

`BENCH_INSTANCES` in the environment sets how many instances the log has: 20,000 (two hundred thousand events) unless it says
otherwise; the promise is about 100,000.
"""

from __future__ import annotations

import asyncio
import os
from statistics import median
from typing import Final

from bench.rebuild_eventsourcing import catch_up_per_s
from bench.rebuild_log import write_log
from bench.result import Comparison, Limit
from bench.services import Services
from projections.generations import Progress
from projections.instance import InstanceProjection
from projections.processes import fold_in_processes
from projections.rebuild import Report, Steps, prune, rebuild

INSTANCES: Final = 20_000
WORKERS: Final = 2
ROUNDS: Final = 3
AGGREGATES: Final = 200

#: 300,000 events a second, as the time that one event may take.
EVENT_US_MAX: Final = 1e6 / 300_000
STOPPED_MS_MAX: Final = 250.0
TIMES_FASTER_MIN: Final = 100.0


async def compare(services: Services) -> list[Comparison | Limit]:
    """A few rebuilds of one log, each with all its rows compared and swapped, and their catch-up between them."""
    instances = int(os.environ.get("BENCH_INSTANCES", INSTANCES))
    url = await services.fresh_database("rebuild_ours", migrated=True)
    events = await asyncio.to_thread(write_log, url, instances=instances)
    reports: list[Report] = []
    theirs: list[float] = []
    for number in range(ROUNDS + 1):
        await services.checkpoint()
        # The first fills the empty table; those after it have rows to compare with and something to swap.
        report = await _rebuild(url, first=number == 0)
        if number:
            reports.append(report)
            their_url = await services.fresh_database("rebuild_theirs", migrated=False)
            theirs.append(await asyncio.to_thread(catch_up_per_s, their_url, aggregates=AGGREGATES))
    ours = [events / report.fold_s for report in reports]
    name = f"rebuild of `instance` from {events:,} events, {WORKERS} workers"
    return [
        Comparison(
            name=f"{name}, events/s folded",
            against="pyeventsourcing, projection catch-up",
            ours=median(ours),
            theirs=median(theirs),
            ratios=[a / b for a, b in zip(ours, theirs, strict=True)],
            target=TIMES_FASTER_MIN,
        ),
        Limit(name=f"{name}, time per event", value=1e6 / median(ours), target=EVENT_US_MAX, unit="us"),
        Limit(
            name="writers stopped at the swap",
            value=1000 * max(report.stopped_s or 0.0 for report in reports),
            target=STOPPED_MS_MAX,
            unit="ms",
        ),
    ]


async def _rebuild(url: str, *, first: bool) -> Report:
    folding = fold_in_processes(url, workers=WORKERS)
    report = await rebuild(
        url, InstanceProjection(), folding=folding, steps=Steps(phase=_ignore, folded=_ignore), accept_drift=first
    )
    assert report.stopped_s is not None, report.drift
    await prune(url, "instance")
    return report


def _ignore(_told: str | Progress) -> None:
    """Nobody looks on."""
