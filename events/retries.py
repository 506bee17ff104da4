"""Runs work on pooled connections, and repeats it while the database is restarting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolClosed, PoolTimeout

from events.cancellation import preserve_cancellation
from events.errors import StoreUnavailable

T = TypeVar("T")

#: How long work is repeated while the database is away. A restart takes a second or two.
RETRY_S_MAX = 10.0
_PAUSE_S = 0.1

#: SQLSTATE classes of temporary errors: connections, logins, lost races, resources, locks, operators, the system. Other errors that
#: psycopg calls operational (such as a value too long for an index) would fail the same way every time.
_TRANSIENT_CLASSES = frozenset({"08", "28", "40", "53", "55", "57", "58"})

#: Further temporary errors. 25P03 and 25P04: the server ends a session that held a lease for too long (see `lease`), because it was
#: idle or slow. 25006: a standby that is about to take over does not accept writes yet.
_READ_ONLY = "25006"
_TRANSIENT_STATES = frozenset({"25P03", "25P04", _READ_ONLY})

#: Messages of `StoreUnavailable`.
NO_ANSWER: Final = "The database does not answer; try again later"
NO_WRITES: Final = (
    "The database takes no writes: it is a standby, or default_transaction_read_only is on for this login"
)


class ConnectionSource(Protocol):
    """The part of a psycopg pool that is used here."""

    def connection(self, timeout: float | None = None) -> AbstractAsyncContextManager[AsyncConnection]: ...

    async def check(self) -> None:
        """Replace idle connections that are broken."""


def is_transient(error: psycopg.Error) -> bool:
    """Whether the work may succeed if it is repeated: the error is one of the connection or the server, not of the statement."""
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return error.sqlstate is None or error.sqlstate[:2] in _TRANSIENT_CLASSES
    return error.sqlstate in _TRANSIENT_STATES


async def with_retries(
    pool: ConnectionSource, work: Callable[[AsyncConnection], Awaitable[T]], *, retry_s_max: float = RETRY_S_MAX
) -> T:
    """Run `work` on a borrowed connection and return its result. `work` must be safe to repeat.

    It is repeated for `retry_s_max` while connections fail or none is available. Then, and at once if the pool was closed, this raises
    `StoreUnavailable`. Errors of the statement itself are raised as psycopg's.

    Connections are not checked when they are borrowed, which would take a round trip each time. After a failure all idle ones are
    checked, so a restart costs one failure and not one per connection.
    """
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + retry_s_max
    message = NO_ANSWER
    while True:
        with preserve_cancellation():
            try:
                async with pool.connection(timeout=max(0.0, give_up_at - clock())) as connection:
                    return await work(connection)
            except PoolClosed as error:
                raise StoreUnavailable("The database connection is closed, because this process is stopping") from error
            except (psycopg.Error, PoolTimeout) as error:
                if not is_transient(error):
                    raise
                # The last error may be the pool's, which has no time left. It says nothing about the cause.
                if not isinstance(error, PoolTimeout):
                    message = NO_WRITES if error.sqlstate == _READ_ONLY else NO_ANSWER
                if clock() > give_up_at:
                    raise StoreUnavailable(message) from error
                await pool.check()
        await asyncio.sleep(_PAUSE_S)


async def run(pool: ConnectionSource, statement: bytes, parameters: Any = None) -> list[Any]:
    """Run one statement on an autocommit connection, with retries. Returns its rows; an empty list if it has none."""

    async def work(connection: AsyncConnection) -> list[Any]:
        cursor = await connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall() if cursor.description else []

    return await with_retries(pool, work)
