"""The swap: writers are stopped for as long as it takes to fold the last few events, look once more, and move names.

Writers are stopped by locking every lane, in order, as every append does; readers wait only while the tables change
places. Readers hold no lanes and writers hold theirs before they touch a table, so nobody waits in a circle. Whatever
takes too long is rolled back and tried again: a transaction that sits on a lane or on a table must not make all wait.

How long that is, the server's clock says, and the server sees to it: this process may be frozen, or wait for a processor. It ends
the session that tries, and looks at the time right before it commits, in the message that says to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, sql

from events.heads import HEADS
from events.sql import Statements, template
from projections import generations
from projections.candidate import Candidate
from projections.catching_up import TooFar
from projections.definition import Inline
from projections.drift import compare
from projections.errors import NamesTaken, ParityMismatch, SwapUnknown, WritersNotStopped
from projections.generations import composed
from projections.tables import LIVE

_SQL = Statements("projections", "swap.sql")
_BEGIN = template(_SQL["begin"])
_LOCK_LANES = _SQL["lock_lanes"]
_LOCK_CHECKPOINTS = _SQL["lock_checkpoints"]
_COMMIT_IN_TIME = template(_SQL["commit_in_time"])
_ON_DISK = _SQL["on_disk"]
_END_SESSION = _SQL["end_session"]
_GENERATIONS = Statements("projections", "generations.sql")
_SET_STATE = _GENERATIONS["set_state"]
_SERVE = _GENERATIONS["serve"]
_RENAME_FOLLOWER = _GENERATIONS["rename_follower"]
_ENTER_AT_HEADS = _GENERATIONS["enter_at_heads"]
_FORGET_FOLLOWER = _GENERATIONS["forget_follower"]

#: How long writers may stand still before the swap lets them go and tries again later.
STOPPED_S_MAX = 0.2

#: The same of a followed projection, whose followers alone stand still: of a table that adds up over instances, changed lanes are
#: compared with all their rows.
FOLLOWERS_STOPPED_S_MAX = 10.0

#: How long it waits for a lane or a table that somebody sits on.
WAIT_S_MAX = 0.1

#: How many events may have to be read meanwhile, old ones of streams that are folded from their beginning too: some hundredths of
#: a second.
READ_MAX = 10_000

#: What a try ends in that has to be made again. So does one whose session was ended before anybody asked it anything.
_NOT_NOW = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    TooFar,
)

#: What a table cannot be moved for: there is something of its name, or of the name of one of its indexes or of its rows' type.
_TAKEN = (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)

#: How often it is tried, and the pause between two tries, which grows.
TRIES_MAX = 50
PAUSE_S = 0.05
PAUSE_S_MAX = 1.0


_Query = tuple[bytes | sql.Composed, Any]
"""A statement with its parameters, or None."""


class Swapped(NamedTuple):
    """How long writers (for a followed projection: its followers) stood still, by the server's clock, and in which try."""

    stopped_s: float
    tries: int


async def swap(
    connect: Callable[[], Awaitable[AsyncConnection]],
    candidate: Candidate,
    *,
    near: Callable[[AsyncConnection], Awaitable[object]],
) -> Swapped:
    """Make the candidate's build the live generation and the live one the previous. Each try is made on a connection of its own.

    `near` is awaited right before each try, on its connection. Raises `ParityMismatch`, `NamesTaken` and `WritersNotStopped`;
    then nothing has changed. Raises `SwapUnknown` where nobody can say whether it has.
    """
    lost: int | None = None
    for tries in range(1, TRIES_MAX + 1):
        try:
            connection = await connect()
        except psycopg.OperationalError:
            if lost is None:
                raise
            # Nobody knows yet what became of the try before.
            await asyncio.sleep(PAUSE_S_MAX)
            continue
        async with connection:
            try:
                if lost is not None and await _was_made(connection, candidate, session=lost):
                    # It was in time.
                    return Swapped(_limit_s(candidate), tries - 1)
            except psycopg.OperationalError:
                await asyncio.sleep(PAUSE_S_MAX)
                continue
            await near(connection)
            await generations.copy_privileges(connection, candidate.build)
            lost = connection.info.backend_pid
            try:
                await _settle(connection, candidate)
                stopped = await _move(connection, candidate)
                await connection.execute(_ON_DISK, candidate.build.key)
            except _TAKEN as error:
                await connection.rollback()
                taken = await generations.names_taken(connection, candidate.build, candidate.live)
                raise NamesTaken(candidate.build.name, taken or [f"another ({error.diag.message_primary})"]) from error
            except (*_NOT_NOW, psycopg.OperationalError) as error:
                if not isinstance(error, _NOT_NOW) and not connection.closed:
                    raise
                # Whatever it still holds goes with its session.
                await connection.close()
            else:
                return Swapped(stopped.total_seconds(), tries)
        await asyncio.sleep(min(PAUSE_S * tries, PAUSE_S_MAX))
    assert lost is not None, "it was tried"
    if await _was_the_last_made(connect, candidate, session=lost):
        return Swapped(_limit_s(candidate), TRIES_MAX)
    raise WritersNotStopped(candidate.build.name, TRIES_MAX)


def _limit_s(candidate: Candidate) -> float:
    return STOPPED_S_MAX if isinstance(candidate.projection, Inline) else FOLLOWERS_STOPPED_S_MAX


async def _was_made(connection: AsyncConnection, candidate: Candidate, *, session: int) -> bool:
    """Whether the try of a session that was lost was committed after all. A lost session does not say what became of it."""
    await connection.execute(_END_SESSION, (session,))
    live = await generations.served(connection, candidate.build.name)
    if live is None or live.number != candidate.build.number:
        return False
    await connection.execute(_ON_DISK, candidate.build.key)
    return True


async def _was_the_last_made(
    connect: Callable[[], Awaitable[AsyncConnection]], candidate: Candidate, *, session: int
) -> bool:
    """The same, for whoever does not try again. Raises `SwapUnknown` where the database does not answer."""
    try:
        async with await connect() as connection:
            return await _was_made(connection, candidate, session=session)
    except psycopg.OperationalError as error:
        raise SwapUnknown(candidate.build.name) from error


async def _settle(connection: AsyncConnection, candidate: Candidate) -> None:
    """Stop the writers (or the followers), take the build to where the live tables are, and compare what is new."""
    await candidate.step(connection, await _stop(connection, candidate), read_max=READ_MAX)
    if candidate.unverified is None or candidate.live is None:
        return
    scope = candidate.unverified.scope()
    comparison = await compare(connection, candidate.projection, candidate.build, scope)
    if comparison.drifted:
        raise ParityMismatch(candidate.build.name, comparison)


async def _stop(connection: AsyncConnection, candidate: Candidate) -> dict[int, int]:
    """How far the live tables are, in every lane, and no farther from now on."""
    stopped_ms, wait_ms = (sql.Literal(str(int(seconds * 1000))) for seconds in (_limit_s(candidate), WAIT_S_MAX))
    begin: _Query = (_BEGIN.format(stopped_ms=stopped_ms, wait_ms=wait_ms), None)
    stop: list[_Query] = [(_LOCK_CHECKPOINTS, (candidate.build.name,))]
    if isinstance(candidate.projection, Inline):
        # In a statement of its own, behind the lock: what it sees is what there is.
        stop = [(_LOCK_LANES, None), (HEADS, None)]
    return dict(await (await _at_once(connection, [begin, *stop])).fetchall())


async def _move(connection: AsyncConnection, candidate: Candidate) -> timedelta:
    """Change names and commit, unless writers have stood still for too long; how long they have.

    All in one message: were the time looked at in one and committed in the next, as much as you like might lie between them.
    """
    limit = sql.Literal(timedelta(seconds=_limit_s(candidate)))
    done = await _at_once(connection, [*_moves(candidate), (_COMMIT_IN_TIME.format(limit=limit), None)])
    ended = await done.fetchone()
    await done.set_result(-3)
    began = await done.fetchone()
    assert began is not None, "it was committed"
    assert ended is not None, "it was committed"
    return ended[0] - began[0]


async def _at_once(connection: AsyncConnection, statements: Iterable[_Query]) -> AsyncClientCursor[Any]:
    """Have the server do one right after the other, whatever becomes of us meanwhile. The cursor is at the last one's rows."""
    cursor = AsyncClientCursor(connection)
    await cursor.execute(";\n".join(cursor.mogrify(*one) for one in statements).encode())
    await cursor.set_result(-1)
    return cursor


def _moves(candidate: Candidate) -> list[_Query]:
    """All tables are locked before the first is moved, so that nobody sees one without the others."""
    projection, build, live, *_ = candidate
    blue = [] if live is None else live.tables
    tables = [sql.Identifier(LIVE, table) for table in blue]
    tables += [sql.Identifier(build.schema, table) for table in build.tables]
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables))
    found: list[_Query] = [(lock, None)]
    move = "ALTER TABLE {}.{} SET SCHEMA {}"
    if live is not None:
        found += [(composed("CREATE SCHEMA IF NOT EXISTS {}", [live.schema]), None)]
        found += [(composed(move, [LIVE, table, live.schema]), None) for table in live.tables]
        found += [(_SET_STATE, live.key | {"state": "previous"})]
        if isinstance(projection, Inline):
            found += [(_ENTER_AT_HEADS, (live.follower,))]
        else:
            found += [(_RENAME_FOLLOWER, {"before": live.name, "after": live.follower})]
    found += [(composed(move, [build.schema, table, LIVE]), None) for table in build.tables]
    found += [(composed("ALTER TABLE {}.{} RESET (autovacuum_enabled)", [LIVE, table]), None) for table in build.tables]
    if isinstance(projection, Inline):
        found += [(_FORGET_FOLLOWER, (build.follower,))]
    else:
        found += [(_RENAME_FOLLOWER, {"before": build.follower, "after": build.name})]
    return [*found, (_SET_STATE, build.key | {"state": "live"}), (_SERVE, build.key)]
