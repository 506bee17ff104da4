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
from psycopg import AsyncConnection, sql

from events.sql import Statements
from projections.candidate import Candidate
from projections.catching_up import CaughtUp, TooFar
from projections.definition import Inline
from projections.drift import compare
from projections.errors import ParityMismatch, WritersNotStopped
from projections.generations import composed
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

#: How many events may have to be read meanwhile, old ones of streams that are folded from their beginning too: some hundredths of
#: a second. Nothing breaks off a fold.
READ_MAX = 10_000

#: How long after a statement was broken off the next one is.
AGAIN_S = 0.01

#: What a try ends in that has to be made again.
_NOT_NOW = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    TooFar,
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


async def swap(
    connection: AsyncConnection, candidate: Candidate, *, between: Callable[[], Awaitable[object]]
) -> Swapped:
    """Make the candidate's build the live generation and the live one the previous.

    `between` is awaited after each try that failed, right before the next. Raises `ParityMismatch` and `WritersNotStopped`; then
    nothing has changed.
    """
    if candidate.live is not None:
        await connection.execute(composed("CREATE SCHEMA IF NOT EXISTS {}", [candidate.live.schema]))
    for tries in range(1, TRIES_MAX + 1):
        began_s = time.perf_counter()
        try:
            async with connection.transaction(), _no_longer_than(connection, STOPPED_S_MAX):
                last = await _settle(connection, candidate)
                await _move(connection, candidate)
            return Swapped(time.perf_counter() - began_s, tries, last.events)
        except _NOT_NOW:
            await asyncio.sleep(min(PAUSE_S * tries, PAUSE_S_MAX))
            await between()
    raise WritersNotStopped(candidate.build.name, TRIES_MAX)


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


async def _settle(connection: AsyncConnection, candidate: Candidate) -> CaughtUp:
    """Stop the writers (or the followers), take the build to where the live tables are, and compare what is new."""
    await connection.execute(_BE_QUICK)
    if isinstance(candidate.projection, Inline):
        upto = dict(await (await connection.execute(_LOCK_HEADS)).fetchall())
    else:
        upto = dict(await (await connection.execute(_LOCK_CHECKPOINTS, (candidate.build.name,))).fetchall())
    step = await candidate.step(connection, upto, read_max=READ_MAX)
    if candidate.unverified is None or candidate.live is None:
        return step
    scope = candidate.unverified.scope(candidate.projection)
    comparison = await compare(connection, candidate.projection, candidate.build, scope)
    if comparison.drifted:
        raise ParityMismatch(candidate.build.name, comparison)
    return step


async def _move(connection: AsyncConnection, candidate: Candidate) -> None:
    """Change names. All tables are locked before the first is moved, so that nobody sees one without the others."""
    projection, build, live, *_ = candidate
    blue = [] if live is None else live.tables
    tables = [sql.Identifier(LIVE, table) for table in blue]
    tables += [sql.Identifier(build.schema, table) for table in build.tables]
    await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables)))
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
