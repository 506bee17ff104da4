"""`audit verify` of an undamaged log: in one process, without and with the read tables, and as it runs by default."""

from __future__ import annotations

import asyncio
import os
from statistics import median
from typing import Final

import psycopg

from bench.processors import used_s
from bench.rebuild import INSTANCES_PER_MILLION, rebuilt
from bench.rebuild_log import write_log
from bench.result import Limit
from bench.services import Services
from hydracore.audit.verifying import Progress, Request, verify
from hydracore.gc_tuning import collect_less_often
from projections.followed import followed_projections

#: Millions of events, about, unless `BENCH_AUDIT_EVENTS` says otherwise.
MILLIONS: Final = "1"
ROUNDS: Final = 3

#: The most microseconds of one core per event: 200,000 events a second.
EVENT_US_MAX: Final = 1e6 / 200_000

#: The projections whose tables are compared. They are filled first.
TABLES: Final = ("instance", "provision_log", "reservation", "usage_daily", "fleet", "activity")

#: No follower has read a log that was written by COPY. With these checkpoints, a rebuild makes the
#: tables that followers would have made.
_FOLLOWED: Final = """
    INSERT INTO checkpoint (follower, lane, seq)
    SELECT name, lane, head FROM lane_head CROSS JOIN unnest(%s::text[]) AS f (name)
"""


#: What is verified, whether read tables are compared, and by how many processes; None: as many as the command starts.
_WAYS: Final[tuple[tuple[str, bool, int | None], ...]] = (
    ("chain, versions and streams", False, 1),
    ("the same, and the read tables", True, 1),
    ("all that, by as many processes as it takes without --workers", True, None),
)


async def measure(services: Services) -> list[Limit]:
    """The elapsed time, and the processor time of the command's processes and their database sessions together."""
    url = await services.fresh_database("audit", migrated=True)
    instances = round(float(os.environ.get("BENCH_AUDIT_EVENTS", MILLIONS)) * INSTANCES_PER_MILLION)
    events = await asyncio.to_thread(write_log, url, instances=instances)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(_FOLLOWED, ([one.name for one in followed_projections()],))
    for name in TABLES:
        await rebuilt(url, name, first=True)
    # As the command does.
    collect_less_often()
    results: list[Limit] = []
    for what, replay, workers in _WAYS:
        clock_us, cpu_us = [list[float](), list[float]()]
        for _ in range(ROUNDS):
            await services.checkpoint()
            began_s = used_s(services.postgres.data)
            request = Request(conninfo=url, replay=replay, workers=workers)
            report = await asyncio.to_thread(verify, request, Progress())
            assert not report.findings, report.findings[:3]
            assert all("seal" in note for note in report.notes), "everything is compared"
            assert report.events == events
            cpu_us.append(1e6 * (used_s(services.postgres.data) - began_s) / events)
            clock_us.append(1e6 * report.seconds / events)
        name = f"audit verify of {events:,} events, {what}"
        results += [
            Limit(name=f"{name}, an event", value=median(clock_us), target=EVENT_US_MAX, unit="us"),
            Limit(name=f"{name}, processor time an event", value=median(cpu_us), target=EVENT_US_MAX, unit="us"),
        ]
    return results
