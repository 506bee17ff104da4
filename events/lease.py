"""Rows that are locked for as long as their holder works, and no longer.

Locks go with the session, and a session stays where its process is frozen, or its machine has lost its power or its network and
says no farewell: the server would keep both for hours. So it is told to end one whose transaction takes too long.
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

#: How long a lease is kept at most. What is done under one takes a second.
LEASE_S_MAX = 30.0

#: PostgreSQL's first version that knows how long a transaction takes. Older ones know how long its client has been silent.
_KNOWS_TRANSACTIONS = 17_00_00


@asynccontextmanager
async def lease(connection: AsyncConnection, locking: Statement) -> AsyncGenerator[Rows]:
    """A transaction for rows that others wait for or pass over, begun by `locking` in one message: its rows. The connection must be
    in autocommit mode.

    After `LEASE_S_MAX` the session is ended, with all that it holds; whoever has it gets an error that `may_pass`. What is done
    under a lease can be done again, so a commit need not wait for the disk.
    """
    bounded = _END_IF_TOO_LONG if connection.info.server_version >= _KNOWS_TRANSACTIONS else _END_IF_IDLE
    limit = Statement(bounded, (b"%d" % (LEASE_S_MAX * 1000),))
    try:
        *_, rows = await exchange(connection, [_BEGIN, limit, locking])
        yield rows
    except BaseException:
        # Where the session is gone, so is its transaction.
        with suppress(psycopg.OperationalError):
            await connection.rollback()
        raise
    await connection.commit()
