"""Work on a database that may be restarting: borrow, try, and try again while the connection is the trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolClosed, PoolTimeout

from events.cancellation import cancellation_heard
from events.errors import StoreUnavailable

T = TypeVar("T")

#: How long work is tried again while the database is away; a restart takes a second or two.
PATIENCE_S = 10.0
_PAUSE_S = 0.1

#: Classes of SQLSTATE that may pass: connections, logins, lost races, resources, locks, operators, the system. What
#: psycopg calls operational besides these (a value too long for an index, say) fails the same way every time.
_PASSING = frozenset({"08", "28", "40", "53", "55", "57", "58"})

#: What the server says to whoever held a lease for too long (see `lease`), before it hangs up: the client was idle, or slow. And what
#: one says that takes no writes yet, because it is a standby that is about to take over.
_PASSING_TOO = frozenset({"25P03", "25P04", "25006"})


class Lender(Protocol):
    """What a psycopg pool is to those who borrow from it."""

    def connection(self, timeout: float | None = None) -> AbstractAsyncContextManager[AsyncConnection]: ...

    async def check(self) -> None:
        """Replace idle connections that are broken."""


def may_pass(error: psycopg.Error) -> bool:
    """Whether the connection is the trouble and not the statement: tried again, it may succeed."""
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return error.sqlstate is None or error.sqlstate[:2] in _PASSING
    return error.sqlstate in _PASSING_TOO


async def patiently(
    pool: Lender, work: Callable[[AsyncConnection], Awaitable[T]], *, patience_s: float = PATIENCE_S
) -> T:
    """The answer of `work` on a borrowed connection. `work` must be safe to repeat.

    Raises `StoreUnavailable` where the connection is the trouble, or none is to be had, once `patience_s` has passed, and at once where
    the pool was closed; psycopg's errors where the statement is to blame.
    Connections are not checked when they are borrowed (that costs a round trip each time); after a failure all idle
    ones are, so that one restart costs one failure and not one per connection.
    """
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + patience_s
    while True:
        with cancellation_heard():
            try:
                async with pool.connection(timeout=max(0.0, give_up_at - clock())) as connection:
                    return await work(connection)
            except PoolClosed as error:
                raise StoreUnavailable("The database is not used any more; this process is stopping") from error
            except (psycopg.Error, PoolTimeout) as error:
                if not may_pass(error):
                    raise
                if clock() > give_up_at:
                    raise StoreUnavailable("The database does not answer; try again later") from error
                await pool.check()
        await asyncio.sleep(_PAUSE_S)


async def run(pool: Lender, statement: bytes, parameters: Any = None) -> list[Any]:
    """One statement on an autocommit connection, repeated while the database is away; its rows, if it has any."""

    async def work(connection: AsyncConnection) -> list[Any]:
        cursor = await connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall() if cursor.description else []

    return await patiently(pool, work)
