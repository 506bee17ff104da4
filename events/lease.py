"""Rows that are locked for as long as their holder works, and no longer.

Locks go with the session, and a session stays where its process is frozen, or its machine has lost its power or its network and
says no farewell: the server would keep both for hours. So it is told to end one whose transaction takes too long.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

from events.sql import Statements

_SQL = Statements("events", "lease.sql")
_END_IF_TOO_LONG = _SQL["end_if_too_long"]
_END_IF_IDLE = _SQL["end_if_idle"]

#: How long a lease is kept at most. What is done under one takes a second.
LEASE_S_MAX = 30.0

#: PostgreSQL's first version that knows how long a transaction takes. Older ones know how long its client has been silent, and
#: not even that amid a pipeline, which seems to them to be busy.
_KNOWS_TRANSACTIONS = 17_00_00


@asynccontextmanager
async def lease(connection: AsyncConnection) -> AsyncGenerator[None]:
    """A transaction for rows that others wait for or pass over. In a pipeline where the server can bound it there, so that what
    needs no answer travels with what does.

    After `LEASE_S_MAX` the session is ended, with all that it holds; whoever has it gets an error that `may_pass`.
    """
    limit = {"limit_ms": int(LEASE_S_MAX * 1000)}
    if connection.info.server_version >= _KNOWS_TRANSACTIONS:
        async with connection.pipeline(), connection.transaction():
            await connection.execute(_END_IF_TOO_LONG, limit, prepare=True)
            yield
    else:
        async with connection.transaction():
            await connection.execute(_END_IF_IDLE, limit, prepare=True)
            yield
