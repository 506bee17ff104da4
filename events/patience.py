"""Runs work on pooled connections, and repeats it while the database is restarting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolClosed, PoolTimeout

from events.cancellation import cancellation_heard
from events.errors import StoreUnavailable

T = TypeVar("T")

#: How long work is repeated while the database is away. A restart takes a second or two.
PATIENCE_S = 10.0
_PAUSE_S = 0.1

#: SQLSTATE classes of temporary errors: connections, logins, lost races, resources, locks, operators, the system. Other errors that
#: psycopg calls operational (such as a value too long for an index) would fail the same way every time.
_PASSING = frozenset({"08", "28", "40", "53", "55", "57", "58"})

#: Further temporary errors. 25P03 and 25P04: the server ends a session that held a lease for too long (see `lease`), because it was
#: idle or slow. 25006: a standby that is about to take over does not accept writes yet.
_READ_ONLY = "25006"
_PASSING_TOO = frozenset({"25P03", "25P04", _READ_ONLY})

#: Messages of `StoreUnavailable`.
NO_ANSWER: Final = "The database does not answer; try again later"
NO_WRITES: Final = (
    "The database takes no writes: it is a standby, or default_transaction_read_only is on for this login"
)


class Lender(Protocol):
    """The part of a psycopg pool that borrowers use."""

    def connection(self, timeout: float | None = None) -> AbstractAsyncContextManager[AsyncConnection]: ...

    async def check(self) -> None:
        """Replace idle connections that are broken."""


def may_pass(error: psycopg.Error) -> bool:
    """Whether the work may succeed if it is repeated: the error is one of the connection or the server, not of the statement."""
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return error.sqlstate is None or error.sqlstate[:2] in _PASSING
    return error.sqlstate in _PASSING_TOO


async def patiently(
    pool: Lender, work: Callable[[AsyncConnection], Awaitable[T]], *, patience_s: float = PATIENCE_S
) -> T:
    """Run `work` on a borrowed connection and return its result. `work` must be safe to repeat.

    It is repeated for `patience_s` while connections fail or none is available. Then, and at once if the pool was closed, this raises
    `StoreUnavailable`. Errors of the statement itself are raised as psycopg's.

    Connections are not checked when they are borrowed, which would take a round trip each time. After a failure all idle ones are
    checked, so a restart costs one failure and not one per connection.
    """
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + patience_s
    trouble = NO_ANSWER
    while True:
        with cancellation_heard():
            try:
                async with pool.connection(timeout=max(0.0, give_up_at - clock())) as connection:
                    return await work(connection)
            except PoolClosed as error:
                raise StoreUnavailable("The database connection is closed, because this process is stopping") from error
            except (psycopg.Error, PoolTimeout) as error:
                if not may_pass(error):
                    raise
                # The last error may be the pool's, which has no time left. It says nothing about the cause.
                if not isinstance(error, PoolTimeout):
                    trouble = NO_WRITES if error.sqlstate == _READ_ONLY else NO_ANSWER
                if clock() > give_up_at:
                    raise StoreUnavailable(trouble) from error
                await pool.check()
        await asyncio.sleep(_PAUSE_S)


async def run(pool: Lender, statement: bytes, parameters: Any = None) -> list[Any]:
    """Run one statement on an autocommit connection, as `patiently` does. Returns its rows; an empty list if it has none."""

    async def work(connection: AsyncConnection) -> list[Any]:
        cursor = await connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall() if cursor.description else []

    return await patiently(pool, work)
