"""The share of their rate that writers keep beside other work.

It is measured while the log is verified or exported, while a projection is rebuilt, and while a transaction is left
open, as by a backup.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from statistics import median
from typing import Final

import psycopg
import uvloop

from bench import append_ours
from bench.reads import REPOSITORY
from bench.rebuild import INSTANCES_PER_MILLION, rebuilt
from bench.rebuild_log import write_log
from bench.result import Comparison
from bench.services import Services
from events.store import EventStore
from projections.inline import inline_projections

#: Millions of events, about, in the log that is read, unless `BENCH_BESIDE_EVENTS` says otherwise.
MILLIONS: Final = "0.1"
TASKS: Final = 16
ROUNDS: Final = 2
#: How long writers are measured alone, before and after each command.
ALONE_S: Final = 4.0
WARM_S: Final = 2.0
#: How long a command is measured before it is interrupted, unless `BENCH_BESIDE_S` says otherwise: the
#: log grows meanwhile, and a command that gives way to writers takes a minute.
RUN_S_MAX: Final = "12"
#: How long a transaction is open before the writers beside it are measured.
OPEN_S: Final = 30.0
#: The exit statuses of a command that has completed, or was interrupted.
ENDED: Final = frozenset({0, 130, -signal.SIGINT})
#: The smallest share of their rate that writers may keep.
KEPT_MIN: Final = 0.8

#: By default, all of them give way to writers.
COMMANDS: Final = {
    "hydracore audit verify": ("audit", "verify"),
    "hydracore audit export": ("audit", "export", "--tenant", "tenant-1", "--output", "{folder}/export", "--force"),
    "hydracore projections rebuild instance": ("projections", "rebuild", "instance"),
}

_SPAWN: Final = get_context("spawn")

_Rates = tuple[float, float]
"""Appends per second meanwhile, and without."""


async def compare(services: Services) -> list[Comparison]:
    """Appends a second while each command runs, against the mean of the appends a second before and after it."""
    url = await services.fresh_database("beside", migrated=True)
    millions = float(os.environ.get("BENCH_BESIDE_EVENTS", MILLIONS))
    await asyncio.to_thread(write_log, url, instances=round(millions * INSTANCES_PER_MILLION))
    for name in ("instance", "provision_log", "reservation"):
        await rebuilt(url, name, first=True)
    folder = services.home.path
    async with _writers(url) as count:
        await asyncio.sleep(WARM_S)
        beside: dict[str, list[_Rates]] = {name: [] for name in COMMANDS}
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                before = await _rate(count, asyncio.sleep(ALONE_S))
                during = await _rate(count, _run(url, [word.format(folder=folder) for word in command]))
                after = await _rate(count, asyncio.sleep(ALONE_S))
                beside[name].append((during, (before + after) / 2))
        opened = [await _beside_a_transaction(url, count) for _ in range(ROUNDS)]
    return [
        *(
            _comparison(f"`{name}` runs over {millions:g} M events", "the same writers alone", rates)
            for name, rates in beside.items()
        ),
        _comparison(f"a transaction has been open for {OPEN_S:.0f} s", "right behind its end", opened),
    ]


def _comparison(meanwhile: str, against: str, rates: Sequence[_Rates]) -> Comparison:
    return Comparison(
        name=f"appends/s while {meanwhile}, {TASKS} tasks",
        against=against,
        ours=median(ours for ours, _ in rates),
        theirs=median(theirs for _, theirs in rates),
        ratios=[ours / theirs for ours, theirs in rates],
        target=KEPT_MIN,
    )


async def _beside_a_transaction(url: str, count: Synchronized[int]) -> _Rates:
    """Appends per second while a transaction with an old snapshot is open, and right after its end."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await connection.execute("SELECT FROM instance LIMIT 1")
        await asyncio.sleep(OPEN_S)
        ours = await _rate(count, asyncio.sleep(ALONE_S))
    return ours, await _rate(count, asyncio.sleep(ALONE_S))


async def _rate(count: Synchronized[int], meanwhile: Awaitable[None]) -> float:
    """Appends per second for as long as `meanwhile` takes."""
    began_s, before = time.perf_counter(), count.value
    await meanwhile
    return (count.value - before) / (time.perf_counter() - began_s)


async def _run(url: str, command: list[str]) -> None:
    environ = os.environ | {"HYDRACORE_DATABASE_URL": url}
    program = (sys.executable, "-m", "hydracore", *command)
    process = await asyncio.create_subprocess_exec(
        *program, cwd=REPOSITORY, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    ending = asyncio.ensure_future(process.communicate())
    if not (await asyncio.wait({ending}, timeout=float(os.environ.get("BENCH_BESIDE_S", RUN_S_MAX))))[0]:
        process.send_signal(signal.SIGINT)
    output, _ = await ending
    if process.returncode not in ENDED:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {output.decode()}")


@asynccontextmanager
async def _writers(url: str) -> AsyncGenerator[Synchronized[int]]:
    """Run a process that appends without pauses. Yields the number of its appends."""
    count: Synchronized[int] = _SPAWN.Value("q", 0)
    process = _SPAWN.Process(target=_append_for_ever, args=(url, count), daemon=True)
    process.start()
    try:
        yield count
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


def _append_for_ever(url: str, count: Synchronized[int]) -> None:
    async def append(store: EventStore) -> None:
        while True:
            await append_ours.append(store, customer_id="customer")
            count.value += 1  # one process and one thread write it

    async def run() -> None:
        async with append_ours.opened(url, inline=inline_projections()) as store:
            await asyncio.gather(*(append(store) for _ in range(TASKS)))

    uvloop.run(run())
