"""How far followed projections are behind while a thousand events a second are appended.

The relay is another process and hears of commits through Redis, as in production. Every few milliseconds
the database is asked how far each follower has committed. The lag of an event is the time from its
`recorded_at` to the first poll that finds that a follower has taken it.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from datetime import datetime
from statistics import quantiles
from typing import Final

import psycopg
from redis.asyncio import Redis

from bench.append_ours import append, opened
from bench.result import Limit
from bench.running import part_of
from bench.services import Services
from events import commands as c
from events.ids import command_id_for
from events.record import Origin
from events.store import EventStore
from hydracore.wake import Publisher
from projections.followed import followed_projections

EVENTS_PER_S: Final = 1_000
SECONDS: Final = 20.0
WARM_S: Final = 3.0
#: Events per instance: one by its request, and three by its plan.
EVENTS_EACH: Final = 4
TICK_S: Final = 0.02
POLL_S: Final = 0.005
WAIT_S_MAX: Final = 60.0
LAG_MS_MAX: Final = 100.0

NAMES: Final = tuple(projection.name for projection in followed_projections())

_TAKEN: Final = "SELECT follower, lane, seq, clock_timestamp() FROM checkpoint WHERE follower = ANY (%s) AND seq > 0"
_RECORDED: Final = "SELECT lane, seq, recorded_at FROM event WHERE recorded_at >= %s ORDER BY lane, seq"
_NOW: Final = "SELECT clock_timestamp()"


Advances = dict[tuple[str, int], list[tuple[int, datetime]]]
"""By follower and lane, in order: the numbers that it was found to have followed to, and when."""


async def measure(services: Services) -> list[Limit]:
    """The lag of the slowest follower at the 99th percentile, at the rate of events that was reached."""
    url = await services.fresh_database("lag", migrated=True)
    environ = {"HYDRACORE_DATABASE_URL": url, "HYDRACORE_REDIS_URL": services.valkey.url(2)}
    await services.supervisor.start(part_of("bench-lag-relay", ("relay",), environ))
    redis: Redis = Redis.from_url(environ["HYDRACORE_REDIS_URL"])
    publisher = Publisher(redis)
    try:
        async with (
            redis,
            opened(url, on_commit=publisher.publish) as store,
            await psycopg.AsyncConnection.connect(url, autocommit=True) as poller,
        ):
            await _append(store, seconds=WARM_S)
            row = await (await poller.execute(_NOW)).fetchone()
            advances: Advances = {}
            polling = asyncio.create_task(_poll(poller, advances))
            events_per_s = await _append(store, seconds=SECONDS)
            async with await psycopg.AsyncConnection.connect(url) as connection:
                events = await (await connection.execute(_RECORDED, row)).fetchall()
            await _until_taken(advances, events)
            polling.cancel()
            await asyncio.wait((polling,))
            await publisher.close()
    finally:
        await services.supervisor.stop(["bench-lag-relay"])
    lags_ms = {name: _lags_ms(name, advances, events) for name in NAMES}
    worst = max(lags_ms, key=lambda name: _p99(lags_ms[name]))
    name = f"followed projection (`{worst}`) behind the log, p99 at {events_per_s:,.0f} events/s"
    return [Limit(name=name, value=_p99(lags_ms[worst]), target=LAG_MS_MAX, unit="ms")]


async def _append(store: EventStore, *, seconds: float) -> float:
    """Append events at `EVENTS_PER_S`. Returns the rate that was reached."""
    began_s, made, running = time.perf_counter(), 0, set[asyncio.Task[None]]()
    while (now_s := time.perf_counter() - began_s) < seconds:
        due = round(now_s * EVENTS_PER_S / EVENTS_EACH)
        running |= {asyncio.create_task(_live(store, number)) for number in range(made, due)}
        made = due
        await asyncio.sleep(TICK_S)
        running = {task for task in running if not task.done()}
    await asyncio.gather(*running)
    return made * EVENTS_EACH / (time.perf_counter() - began_s)


async def _live(store: EventStore, number: int) -> None:
    instance_id = await append(store, customer_id=f"customer-{number % 100}")
    now_ms = time.time_ns() // 1_000_000
    plan = c.PlanServer(
        at_ms=now_ms,
        attempt=1,
        provider="cloudsim",
        server_type="cx22",
        location="fsn1",
        image="debian-13",
        hostname=f"hc-{instance_id}",
        vpn_ip=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        server_name=f"hc-{instance_id}",
        enrol_nonce="0" * 32,
        enrol_token_hash="0" * 64,
        enrol_expires_ms=now_ms + 3_600_000,
        deadline_ms=now_ms + 900_000,
    )
    origin = Origin(actor="worker", command_id=command_id_for(instance_id, "plan"), correlation_id=instance_id)
    await store.execute(instance_id, plan, origin)


async def _poll(connection: psycopg.AsyncConnection, advances: Advances) -> None:
    while True:
        cursor = await connection.execute(_TAKEN, (list(NAMES),), prepare=True)
        for follower, lane, seq, at in await cursor.fetchall():
            known = advances.setdefault((follower, lane), [])
            if not known or known[-1][0] < seq:
                known.append((seq, at))
        await asyncio.sleep(POLL_S)


async def _until_taken(advances: Advances, events: list[tuple[int, int, datetime]]) -> None:
    heads = {lane: seq for lane, seq, _ in events}
    end_s = time.perf_counter() + WAIT_S_MAX
    while any(_at(advances, name, lane) < seq for name in NAMES for lane, seq in heads.items()):
        if time.perf_counter() > end_s:
            raise RuntimeError(f"the followers did not catch up within {WAIT_S_MAX:g} s")
        await asyncio.sleep(POLL_S)


def _at(advances: Advances, name: str, lane: int) -> int:
    return advances.get((name, lane), [(0, None)])[-1][0]


def _lags_ms(name: str, advances: Advances, events: list[tuple[int, int, datetime]]) -> list[float]:
    found: list[float] = []
    for lane, seq, recorded_at in events:
        known = advances[name, lane]
        _, at = known[bisect_left(known, seq, key=lambda advance: advance[0])]
        found.append(1000 * (at - recorded_at).total_seconds())
    return found


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]
