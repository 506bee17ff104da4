"""Leases: row locks with a time limit.

Locks last as long as their session. If its process is frozen, or its machine has lost power or network, the server would keep the
session for hours. So the server is told to end a session whose transaction takes too long.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg import AsyncConnection

from events.exchange import Rows, Statement, exchange
from events.sql import Statements

_SQL = Statements("events", "lease.sql")
_BEGIN = Statement(_SQL["begin"], ())
_END_IF_TOO_LONG = _SQL["end_if_too_long"]
_END_IF_IDLE = _SQL["end_if_idle"]

#: The longest lease. Work under one takes about a second.
LEASE_S_MAX = 30.0

#: PostgreSQL's first version with `transaction_timeout`. Older ones can only limit how long the client is idle in a transaction.
_TRANSACTION_TIMEOUT_SINCE = 17_00_00


@asynccontextmanager
async def lease(connection: AsyncConnection, locking: Statement) -> AsyncGenerator[Rows]:
    """A transaction that begins with the statement `locking`, in one message. Yields the rows of that statement.

    The connection must be in autocommit mode. After `LEASE_S_MAX` the server ends the session and frees its locks; the holder gets an
    error that `is_transient`. Work under a lease must be repeatable: its commit does not wait for the disk.
    """
    bounded = _END_IF_TOO_LONG if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE else _END_IF_IDLE
    limit = Statement(bounded, (b"%d" % (LEASE_S_MAX * 1000),))
    try:
        *_, rows = await exchange(connection, [_BEGIN, limit, locking])
        yield rows
    except BaseException:
        # If the session is gone, so is its transaction.
        with suppress(psycopg.OperationalError):
            await connection.rollback()
        raise
    await connection.commit()
