"""The swap: stop the writers, apply the last few events, compare once more, exchange the tables, let the writers go on.

Writers are stopped by locking all lanes in order: every append locks its lane first. Readers wait only while the tables
are exchanged. There can be no deadlock: readers lock no lanes, and writers lock theirs before they touch a table. A try
that takes too long is rolled back and repeated later, so that a transaction that holds a lane or a table cannot make
all others wait.

The time limit is measured and enforced by the server, because this process may be frozen or wait for a processor. The
server ends a session that exceeds it, and checks the time once more right before the commit, in the same message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, sql

from events.heads import HEADS
from events.sql import Statements, template
from projections import generations
from projections.candidate import Candidate
from projections.catching_up import ReadLimitExceeded
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
_COMMIT_DURABLY = _SQL["on_disk"]
_SESSION = _SQL["session"]
_END_SESSION = _SQL["end_session"]
_GENERATIONS = Statements("projections", "generations.sql")
_SET_STATE = _GENERATIONS["set_state"]
_SET_LIVE = _GENERATIONS["set_live"]
_RENAME_FOLLOWER = _GENERATIONS["rename_follower"]
_CREATE_CHECKPOINTS_AT_HEADS = _GENERATIONS["create_checkpoints_at_heads"]
_DELETE_CHECKPOINTS = _GENERATIONS["delete_checkpoints"]

#: The most seconds that a try may hold up writers. After that it is rolled back and repeated later.
STOPPED_S_MAX = 0.2

#: The same for a followed projection, which holds up only its followers. It is longer because for a table that adds up
#: over instances, all rows of the changed lanes are compared.
FOLLOWERS_STOPPED_S_MAX = 10.0

#: The most seconds to wait for a lock on a lane or a table.
WAIT_S_MAX = 0.1

#: The most events to read while writers are stopped, old ones of streams without a kept fold included. That takes some
#: hundredths of a second.
READ_MAX = 10_000

#: Errors after which the swap is tried again. It is also tried again after an error that closed the connection.
_RETRYABLE = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.IdleInTransactionSessionTimeout,
    ReadLimitExceeded,
)

#: Why a table cannot be moved: a relation or type with its name, or with the name of one of its indexes, exists.
_NAME_CONFLICTS = (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)

#: The most tries, and the pause between two tries in seconds: the first, which grows with each try, and the longest.
TRIES_MAX = 50
PAUSE_S = 0.05
PAUSE_S_MAX = 1.0


_Query = tuple[bytes | sql.Composed, Any]
"""A statement, and its parameters or None."""

_Session = tuple[int, datetime]
"""A session's pid and the time of its start."""


class SwapResult(NamedTuple):
    """How long writers (or followers) were stopped, by the server's clock, and how many tries it took.

    `prepared`: how many events were applied to the build before the tries.
    """

    stopped_s: float
    tries: int
    prepared: int


async def swap(
    connect: Callable[[], Awaitable[AsyncConnection]],
    candidate: Candidate,
    *,
    prepare: Callable[[AsyncConnection], Awaitable[int]],
) -> SwapResult:
    """Make the candidate's build the live generation, and the live one the previous. Each try has its own connection.

    `prepare` is awaited right before each try, on its connection, and returns how many events it has applied. Raises `ParityMismatch`, `NamesTaken` and
    `WritersNotStopped`; then nothing has changed. Raises `SwapUnknown` where the database does not say whether the swap
    was made.
    """
    lost_session: _Session | None = None
    prepared = 0
    for tries in range(1, TRIES_MAX + 1):
        try:
            connection = await connect()
        except psycopg.OperationalError:
            if lost_session is None:
                raise
            # The outcome of the try before is not known yet.
            await asyncio.sleep(PAUSE_S_MAX)
            continue
        async with connection:
            try:
                if lost_session is not None and await _was_committed(connection, candidate, session=lost_session):
                    # How long it took is not known, but it was within the limit.
                    return SwapResult(_limit_s(candidate), tries - 1, prepared)
            except psycopg.OperationalError:
                await asyncio.sleep(PAUSE_S_MAX)
                continue
            prepared += await prepare(connection)
            await generations.copy_privileges(connection, candidate.build)
            lost_session = await (await connection.execute(_SESSION)).fetchone()
            stopped = await _try(connection, candidate)
            if stopped is not None:
                return SwapResult(stopped.total_seconds(), tries, prepared)
        await asyncio.sleep(min(PAUSE_S * tries, PAUSE_S_MAX))
    assert lost_session is not None, "it was tried"
    if await _was_last_try_committed(connect, candidate, session=lost_session):
        return SwapResult(_limit_s(candidate), TRIES_MAX, prepared)
    raise WritersNotStopped(candidate.build.name, TRIES_MAX)


async def _try(connection: AsyncConnection, candidate: Candidate) -> timedelta | None:
    """Try the swap once. Returns how long writers (or followers) were stopped.

    Returns None where it is to be tried again: then the connection is closed, and if it was lost during the commit,
    nobody knows yet whether the swap was made. Raises `ParityMismatch` and `NamesTaken`.
    """
    try:
        await _stop_and_compare(connection, candidate)
        stopped = await _exchange_tables(connection, candidate)
        await connection.execute(_COMMIT_DURABLY, candidate.build.key)
    except _NAME_CONFLICTS as error:
        await connection.rollback()
        taken = await generations.names_taken(connection, candidate.build, candidate.live)
        raise NamesTaken(candidate.build.name, taken or [f"another ({error.diag.message_primary})"]) from error
    except (*_RETRYABLE, psycopg.OperationalError) as error:
        if not isinstance(error, _RETRYABLE) and not connection.closed:
            raise
        # Closing the session releases all that it still holds.
        await connection.close()
        return None
    return stopped


def _limit_s(candidate: Candidate) -> float:
    return STOPPED_S_MAX if isinstance(candidate.projection, Inline) else FOLLOWERS_STOPPED_S_MAX


async def _was_committed(connection: AsyncConnection, candidate: Candidate, *, session: _Session) -> bool:
    """Whether the try in the lost `session` was committed. Ends that session, so that it cannot commit later."""
    await connection.execute(_END_SESSION, session)
    live = await generations.live_generation(connection, candidate.build.name)
    if live is None or live.number != candidate.build.number:
        return False
    await connection.execute(_COMMIT_DURABLY, candidate.build.key)
    return True


async def _was_last_try_committed(
    connect: Callable[[], Awaitable[AsyncConnection]], candidate: Candidate, *, session: _Session
) -> bool:
    """The same after the last try, on a new connection. Raises `SwapUnknown` where the database does not answer."""
    try:
        async with await connect() as connection:
            return await _was_committed(connection, candidate, session=session)
    except psycopg.OperationalError as error:
        raise SwapUnknown(candidate.build.name) from error


async def _stop_and_compare(connection: AsyncConnection, candidate: Candidate) -> None:
    """Stop the writers (or followers), bring the build to the same position, and compare what has changed.

    Raises `ParityMismatch`.
    """
    await candidate.step(connection, await _stop_writers(connection, candidate), read_max=READ_MAX)
    if candidate.unverified is None or candidate.live is None:
        return
    scope = candidate.unverified.scope()
    comparison = await compare(connection, candidate.projection, candidate.build, candidate.live, scope)
    if comparison.drifted:
        raise ParityMismatch(candidate.build.name, comparison)


async def _stop_writers(connection: AsyncConnection, candidate: Candidate) -> dict[int, int]:
    """Stop the writers (or followers). Returns the position of the live tables in every lane, which cannot move now."""
    stopped_ms, wait_ms = (sql.Literal(str(int(seconds * 1000))) for seconds in (_limit_s(candidate), WAIT_S_MAX))
    begin: _Query = (_BEGIN.format(stopped_ms=stopped_ms, wait_ms=wait_ms), None)
    stop: list[_Query] = [(_LOCK_CHECKPOINTS, (candidate.build.name,))]
    if isinstance(candidate.projection, Inline):
        # A separate statement after the lock, so that its snapshot has all that was committed before.
        stop = [(_LOCK_LANES, None), (HEADS, None)]
    return dict(await (await _in_one_message(connection, [begin, *stop])).fetchall())


async def _exchange_tables(connection: AsyncConnection, candidate: Candidate) -> timedelta:
    """Exchange the tables and commit, unless writers were stopped for too long. Returns how long they were stopped.

    The check and the commit are in one message: between two messages any amount of time could pass.
    """
    limit = sql.Literal(timedelta(seconds=_limit_s(candidate)))
    done = await _in_one_message(
        connection, [*_exchange_statements(candidate), (_COMMIT_IN_TIME.format(limit=limit), None)]
    )
    ended = await done.fetchone()
    await done.set_result(-3)
    began = await done.fetchone()
    assert began is not None, "it was committed"
    assert ended is not None, "it was committed"
    return ended[0] - began[0]


async def _in_one_message(connection: AsyncConnection, statements: Iterable[_Query]) -> AsyncClientCursor[Any]:
    """Send `statements` in one message, so that the server runs them without waiting for this process.

    Returns a cursor at the result of the last one.
    """
    cursor = AsyncClientCursor(connection)
    await cursor.execute(";\n".join(cursor.mogrify(*one) for one in statements).encode())
    await cursor.set_result(-1)
    return cursor


def _exchange_statements(candidate: Candidate) -> list[_Query]:
    """The statements of the exchange. All tables are locked first, so that nobody sees one table without the others."""
    projection, build, live, *_ = candidate
    live_tables = [] if live is None else live.tables
    tables = [sql.Identifier(LIVE, table) for table in live_tables]
    tables += [sql.Identifier(build.schema, table) for table in build.tables]
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables))
    found: list[_Query] = [(lock, None)]
    move = "ALTER TABLE {}.{} SET SCHEMA {}"
    if live is not None:
        found += [(composed("CREATE SCHEMA IF NOT EXISTS {}", [live.schema]), None)]
        found += [(composed(move, [LIVE, table, live.schema]), None) for table in live.tables]
        found += [(_SET_STATE, live.key | {"state": "previous"})]
        if isinstance(projection, Inline):
            found += [(_CREATE_CHECKPOINTS_AT_HEADS, (live.follower,))]
        else:
            found += [(_RENAME_FOLLOWER, {"before": live.name, "after": live.follower})]
    found += [(composed(move, [build.schema, table, LIVE]), None) for table in build.tables]
    found += [(composed("ALTER TABLE {}.{} RESET (autovacuum_enabled)", [LIVE, table]), None) for table in build.tables]
    if isinstance(projection, Inline):
        found += [(_DELETE_CHECKPOINTS, (build.follower,))]
    else:
        found += [(_RENAME_FOLLOWER, {"before": build.follower, "after": build.name})]
    return [*found, (_SET_STATE, build.key | {"state": "live"}), (_SET_LIVE, build.key)]
