"""Shares one pooled connection among concurrent tasks. Their exchanges are pipelined on it (see `events.exchange`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.exchange import Statement, exchange, parse_int

#: A task that waits longer than this is late: the database is slow or away.
LATE_AFTER_S = 0.25

_PID = Statement(b"SELECT pg_backend_pid()", ())


class _Loan:
    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.users = 0


class SharedConnection:
    """Lends one connection of `pool` to all concurrent tasks. Use it like a pool, but for exchanges only.

    While a task is late (`LATE_AFTER_S`), new tasks get another connection. The tasks that already share the late one wait for it,
    because it may be in a commit: a server that is asked to cancel a commit which waits for a standby reports it as committed, although
    no standby has it. Behind a pooler each task gets a connection of its own: the pooler may give the session to another client between
    two pipelined transactions.
    """

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._loan: _Loan | None = None
        #: Whether a connection leads to PostgreSQL itself and not to a pooler.
        self._direct: WeakKeyDictionary[AsyncConnection, bool] = WeakKeyDictionary()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncGenerator[AsyncConnection]:  # noqa: ASYNC109 - as a pool has it
        """Borrow the shared connection, or a new one. Raises `PoolTimeout` and `PoolClosed`."""
        loan = self._loan
        if loan is None or loan.connection.closed:
            loan = _Loan(await self._pool.getconn(timeout))
        loan.users += 1
        try:
            # Tasks that come together may borrow one each: the last one to get here lends its own, the others use theirs alone.
            if loan is not self._loan and await self._may_be_shared(loan.connection):
                self._loan = loan
            late_timer = asyncio.get_running_loop().call_later(LATE_AFTER_S, self._stop_sharing, loan)
            try:
                yield loan.connection
            finally:
                late_timer.cancel()
        finally:
            loan.users -= 1
            await self._give_back(loan)

    async def check(self) -> None:
        """Replace the pool's idle connections that are broken."""
        await self._pool.check()

    async def _may_be_shared(self, connection: AsyncConnection) -> bool:
        direct = self._direct.get(connection)
        if direct is None:
            # A pooler reports a process id of its own at the start of a connection.
            [[(pid,)]] = await exchange(connection, [_PID])
            direct = self._direct[connection] = parse_int(pid) == connection.info.backend_pid
        return direct

    def _stop_sharing(self, loan: _Loan) -> None:
        if self._loan is loan:
            self._loan = None

    async def _give_back(self, loan: _Loan) -> None:
        if loan.users:
            return
        if self._loan is loan:
            self._loan = None
        await self._pool.putconn(loan.connection)
