"""The swap: writers are stopped for as long as it takes to fold the last few events, look once more, and move names.

Writers are stopped by locking every lane's head, in order, as every append does; readers wait only while the tables change
places. Readers hold no lanes and writers hold theirs before they touch a table, so nobody waits in a circle. Whatever
takes too long is rolled back and tried again: a transaction that sits on a lane or on a table must not make all wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import psycopg
from psycopg import AsyncConnection

from events.sql import Statements
from projections.catching_up import CaughtUp, Positions, Stream, catch_up, positions
from projections.definition import Inline, Projection
from projections.drift import Scope, compare
from projections.errors import ParityMismatch, WritersNotStopped
from projections.generations import Generation, composed
from projections.tables import LIVE

_SQL = Statements("projections", "swap.sql")
_BE_QUICK = _SQL["be_quick"]
_LOCK_HEADS = _SQL["lock_heads"]
_LOCK_CHECKPOINTS = _SQL["lock_checkpoints"]
_GENERATIONS = Statements("projections", "generations.sql")
_SET_STATE = _GENERATIONS["set_state"]
_SERVE = _GENERATIONS["serve"]
_RENAME_FOLLOWER = _GENERATIONS["rename_follower"]
_ENTER_AT_HEADS = _GENERATIONS["enter_at_heads"]
_FORGET_FOLLOWER = _GENERATIONS["forget_follower"]

#: How long writers may stand still before the swap lets them go and tries again later.
STOPPED_S_MAX = 0.2

#: How long after a statement was broken off the next one is.
AGAIN_S = 0.01

#: What a try ends in that has to be made again.
_NOT_NOW = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
)

#: How often it is tried, and the pause between two tries, which grows.
TRIES_MAX = 50
PAUSE_S = 0.05
PAUSE_S_MAX = 1.0


class Swapped(NamedTuple):
    """How long writers (for a followed projection: its followers) stood still, in which try, and what came last."""

    stopped_s: float
    tries: int
    events: int


class Unverified(NamedTuple):
    """What has changed since live and fresh tables were last found equal."""

    lanes: set[int]
    streams: set[Stream]

    def add(self, step: CaughtUp) -> None:
        self.lanes.update(step.lanes)
        self.streams.update(step.streams)


async def swap(
    connection: AsyncConnection,
    projection: Projection,
    build: Generation,
    live: Generation | None,
    *,
    unverified: Unverified | None,
    between: Callable[[], Awaitable[None]],
) -> Swapped:
    """Make `build` the live generation and `live` the previous one. `unverified` None: nothing is compared.

    `between` is awaited after each try that failed, before the next. Raises `ParityMismatch` and `WritersNotStopped`;
    then nothing has changed.
    """
    if live is not None:
        await connection.execute(composed("CREATE SCHEMA IF NOT EXISTS {}", [live.schema]))
    for tries in range(1, TRIES_MAX + 1):
        began_s = time.perf_counter()
        try:
            async with connection.transaction(), _no_longer_than(connection, STOPPED_S_MAX):
                last = await _settle(connection, projection, build, live, unverified)
                await _move(connection, projection, build, live)
            return Swapped(time.perf_counter() - began_s, tries, last.events)
        except _NOT_NOW:
            await between()
            await asyncio.sleep(min(PAUSE_S * tries, PAUSE_S_MAX))
    raise WritersNotStopped(build.name, TRIES_MAX)


@asynccontextmanager
async def _no_longer_than(connection: AsyncConnection, seconds: float) -> AsyncGenerator[None]:
    """Has the server break off whatever still runs on the connection after `seconds`: `QueryCanceled` is raised there.

    Cancelling on this side would leave a connection that is in the middle of a COPY unusable.
    """
    over = asyncio.Event()

    async def watch() -> None:
        pause_s = seconds
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pause_s)
                return
            # Between two statements there is nothing to break off: the next one is.
            await connection.cancel_safe()
            pause_s = AGAIN_S

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        over.set()
        await watching


async def _settle(
    connection: AsyncConnection,
    projection: Projection,
    build: Generation,
    live: Generation | None,
    unverified: Unverified | None,
) -> CaughtUp:
    """Stop the writers (or the followers), take `build` to where the live tables are, and compare what is new."""
    await connection.execute(_BE_QUICK)
    if isinstance(projection, Inline):
        upto = dict(await (await connection.execute(_LOCK_HEADS)).fetchall())
    else:
        upto = dict(await (await connection.execute(_LOCK_CHECKPOINTS, (build.name,))).fetchall())
    step = await catch_up(connection, projection, build, upto)
    if unverified is None or live is None:
        return step
    # Should this try fail, what it took is looked at once more than needed; nothing is looked at too little.
    unverified.add(step)
    at = await positions(connection, build.follower)
    scope = scope_of(projection, unverified, at=at, upto=upto)
    comparison = await compare(connection, projection, build, scope)
    if comparison.drifted:
        raise ParityMismatch(build.name, comparison)
    return step


def scope_of(projection: Projection, unverified: Unverified, *, at: Positions, upto: Positions) -> Scope:
    """What has to be compared once the fresh tables are `at` and the live ones `upto`.

    A lane in which the fresh tables are ahead of the live ones, because those have stopped following, cannot be.
    """
    if isinstance(projection, Inline):
        return Scope(streams=unverified.streams)
    return Scope(lanes={lane for lane in unverified.lanes if at[lane] == upto.get(lane)})


async def _move(
    connection: AsyncConnection, projection: Projection, build: Generation, live: Generation | None
) -> None:
    """Change names. All tables are locked before the first is moved, so that nobody sees one without the others."""
    blue = [] if live is None else live.tables
    tables = [f"{LIVE}.{table}" for table in blue] + [f"{build.schema}.{table}" for table in build.tables]
    lock = "LOCK TABLE " + ", ".join(["{}.{}"] * len(tables)) + " IN ACCESS EXCLUSIVE MODE"
    await connection.execute(composed(lock, [part for table in tables for part in table.split(".")]))
    move = "ALTER TABLE {}.{} SET SCHEMA {}"
    if live is not None:
        for table in live.tables:
            await connection.execute(composed(move, [LIVE, table, live.schema]))
        await connection.execute(_SET_STATE, live.key | {"state": "previous"})
        if isinstance(projection, Inline):
            await connection.execute(_ENTER_AT_HEADS, (live.follower,))
        else:
            await connection.execute(_RENAME_FOLLOWER, {"before": live.name, "after": live.follower})
    for table in build.tables:
        await connection.execute(composed(move, [build.schema, table, LIVE]))
    if isinstance(projection, Inline):
        await connection.execute(_FORGET_FOLLOWER, (build.follower,))
    else:
        await connection.execute(_RENAME_FOLLOWER, {"before": build.follower, "after": build.name})
    await connection.execute(_SET_STATE, build.key | {"state": "live"})
    await connection.execute(_SERVE, build.key)
