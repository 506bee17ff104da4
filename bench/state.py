"""Reads of an instance with a long history.

Measured are the fold of its state at a version, the whole command `audit state`, and its first load by a new process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final, NamedTuple
from uuid import UUID

import psutil
import psycopg
from psycopg_pool import AsyncConnectionPool

from bench.reads import REPOSITORY
from bench.rebuild_log import NOW_MS, Life, life_of, write_lives
from bench.result import Comparison, Limit
from bench.services import Services
from events import types as e
from events.store import EventStore
from events.types import AnyEvent, Sealed, UsageEntry
from hydracore.audit.historical_state import state_at
from hydracore.db.pool import open_pool

EVENTS: Final = 10_000
ROUNDS: Final = 9
WARM: Final = 2

#: The numbers of two lives (`life_of`) that come to run. The first one is continued.
LONG: Final = 5
SHORT: Final = 6
#: The number of the life that is loaded, and its events behind the snapshot: as many as on average.
LOADED: Final = 15
BEHIND: Final = 250

WORK_MS_MAX: Final = 100.0
COMMAND_MS_MAX: Final = 1_000.0
FIRST_LOADS_RATIO_MIN: Final = 5.0

#: `python -m hydracore`, which prints its CPU time in seconds when it ends.
_COMMAND: Final = """
import atexit, sys, time
atexit.register(lambda: print(time.process_time(), file=sys.stderr))
from hydracore.cli import main
main()
"""


async def measure(services: Services) -> list[Comparison | Limit]:
    """Measure the function on an open pool, then the command, from which the same for a short history is subtracted."""
    url = await services.fresh_database("state", migrated=True)
    (long_id, life), short = _going_on(*life_of(LONG), events=EVENTS), life_of(SHORT)
    loaded_id, loaded_life = _going_on(*life_of(LOADED), events=EVENTS + BEHIND)
    await asyncio.to_thread(write_lives, url, [{long_id: life}, {loaded_id: loaded_life}, dict([short])])
    took = await _states(url, long_id)
    whole, start = list[float](), list[float]()
    for _ in range(ROUNDS):
        whole.append(await _command_cpu_ms(url, long_id))
        start.append(await _command_cpu_ms(url, short[0]))
    name = f"audit state, {EVENTS:,} events"
    added = median(whole) - median(start)
    return [
        Limit(name=f"{name}: CPU of reader and database", value=took.cpu_ms, target=WORK_MS_MAX, unit="ms"),
        Limit(name=f"{name}: time, least disturbed of {ROUNDS}", value=took.best_ms, target=WORK_MS_MAX, unit="ms"),
        Limit(name=f"{name}: CPU of the command, its start aside", value=added, target=WORK_MS_MAX, unit="ms"),
        Limit(name=f"{name}: CPU of the whole command", value=median(whole), target=COMMAND_MS_MAX, unit="ms"),
        await _first_loads(url, loaded_id),
    ]


async def _first_loads(url: str, instance_id: UUID) -> Comparison:
    """Loads per second of new stores: with the snapshot that the load before has left, and without any."""
    ours, theirs = list[float](), list[float]()
    async with (
        open_pool(url, role="hydracore_app", application="bench-state", size=1) as pool,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as owner,
    ):
        for _ in range(WARM + ROUNDS):
            await owner.execute("DELETE FROM snapshot")
            theirs.append(await _first_load(pool, instance_id))
            ours.append(await _first_load(pool, instance_id))
    ours, theirs = ours[WARM:], theirs[WARM:]
    return Comparison(
        name=f"first load of an instance with {EVENTS + BEHIND:,} events, {BEHIND} of them behind its snapshot, loads/s",
        against="without a snapshot",
        ours=median(ours),
        theirs=median(theirs),
        ratios=[one / other for one, other in zip(ours, theirs, strict=True)],
        target=FIRST_LOADS_RATIO_MIN,
    )


async def _first_load(pool: AsyncConnectionPool, instance_id: UUID) -> float:
    store = EventStore(pool, inline=())
    began = time.perf_counter()
    state = await store.load(instance_id)
    took_s = time.perf_counter() - began
    assert state is not None
    assert state.version == EVENTS + BEHIND
    return 1 / took_s


class Took(NamedTuple):
    """`cpu_ms`: the mean CPU time of a round, including the database's. `best_ms`: the time of the shortest round."""

    cpu_ms: float
    best_ms: float


async def _states(url: str, instance_id: UUID) -> Took:
    async with open_pool(url, role="hydracore_app", application="bench-state", size=1) as pool:
        for _ in range(WARM):
            await state_at(pool, instance_id, version=EVENTS)
        async with pool.connection() as connection:
            backend = psutil.Process(connection.info.backend_pid)
        before_s, times = time.process_time() + _cpu_s(backend), list[float]()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            past = await state_at(pool, instance_id, version=EVENTS)
            times.append(time.perf_counter() - began)
            assert past.state.version == EVENTS
        cpu_s = time.process_time() + _cpu_s(backend) - before_s
    return Took(cpu_ms=1000 * cpu_s / ROUNDS, best_ms=1000 * min(times))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _command_cpu_ms(url: str, instance_id: UUID) -> float:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _COMMAND, "audit", "state", str(instance_id), "--json"),
        cwd=REPOSITORY,
        env={**os.environ, "HYDRACORE_DATABASE_URL": url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, printed = await process.communicate()
    assert process.returncode == 0, printed
    return 1000 * float(printed)


def _going_on(instance_id: UUID, life: Life, *, events: int) -> tuple[UUID, Life]:
    """`life`, continued until it has this many events."""
    tenant_id, steps = life
    begun = sum(map(len, steps))
    return instance_id, (tenant_id, [*steps, *([event] for event in _days(events - begun))])


def _days(events: int) -> Iterator[AnyEvent]:
    """Events of a running instance: its agent is late and healthy again, is configured, and reports usage."""
    ledger_id = UUID(int=LONG)
    for number in range(events):
        at_ms = NOW_MS + 60_000 * number
        match number % 4:
            case 0:
                yield e.HealthChanged(at_ms=at_ms, health="late")
            case 1:
                yield e.HealthChanged(at_ms=at_ms, health="healthy")
            case 2:
                prompt = Sealed("v1." + "c2VhbGVk" * 40)
                yield e.ConfigChanged(at_ms=at_ms, agent_name=f"Ada {number}", system_prompt=prompt)
            case _:
                entry = UsageEntry(
                    at_ms=at_ms,
                    model="gpt-4.1-mini",
                    prompt_tokens=900,
                    completion_tokens=120,
                    cost_usd="0.000552",
                    channel="api",
                )
                yield e.UsageRecorded(at_ms=at_ms, ledger_id=ledger_id, seq=number // 4 + 1, entries=(entry,) * 3)
