"""Append with one inline projection against pyeventsourcing's default append, each at its best."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Final

import uvloop

from bench import append_eventsourcing, append_ours
from bench.result import Comparison
from bench.services import Services

TASKS: Final = 16
THREADS: Final = (1, 2, 4, 8, 16)
TRIAL_S: Final = 1.5
ROUNDS: Final = 5
ROUND_S: Final = 3.0
#: The warm-up of each of our rounds: its connections are new, and prepare their statements first.
WARM_S: Final = 0.3
TARGET: Final = 4.0


async def compare(services: Services) -> list[Comparison]:
    """First find the thread count that suits pyeventsourcing best, then measure the two in turn."""
    threads = await _best_threads(services)
    ours: list[float] = []
    theirs: list[float] = []
    our_url = await services.fresh_database("append_ours", migrated=True)
    their_url = await services.fresh_database("append_theirs", migrated=False)
    with append_eventsourcing.opened(their_url, threads=threads) as application:
        for number in range(ROUNDS + 1):
            await services.checkpoint()
            # In another event loop, of the kind that the API runs on. The current one is not, because it
            # starts processes as other users.
            mine = await asyncio.to_thread(lambda: uvloop.run(_ours_per_s(our_url)))
            await services.checkpoint()
            other = await asyncio.to_thread(
                append_eventsourcing.appends_per_s, application, threads=threads, seconds=ROUND_S
            )
            if number:  # the first round warms both up
                ours.append(mine)
                theirs.append(other)
    return [
        Comparison(
            name=f"append with one inline projection, {TASKS} tasks, appends/s",
            against=f"pyeventsourcing, {threads} threads, no projection",
            ours=median(ours),
            theirs=median(theirs),
            ratios=[a / b for a, b in zip(ours, theirs, strict=True)],
            target=TARGET,
        )
    ]


async def _ours_per_s(url: str) -> float:
    async with append_ours.opened(url) as store:
        await append_ours.appends_per_s(store, tasks=TASKS, seconds=WARM_S)
        return await append_ours.appends_per_s(store, tasks=TASKS, seconds=ROUND_S)


async def _best_threads(services: Services) -> int:
    figures: dict[int, float] = {}
    for threads in THREADS:
        url = await services.fresh_database("append_trial", migrated=False)
        with append_eventsourcing.opened(url, threads=threads) as application:
            figures[threads] = await asyncio.to_thread(
                append_eventsourcing.appends_per_s, application, threads=threads, seconds=TRIAL_S
            )
    return max(figures, key=figures.__getitem__)
