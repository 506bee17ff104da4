"""The rebuild lock of a projection: an advisory lock, so that one rebuild of a projection runs at a time.

It also keeps out interventions that a running rebuild would not see. The lock ends with the session that holds it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from events.sql import Statements
from projections.errors import RebuildBusy, RebuildLockLost
from projections.generations import UNLIMITED_SESSION

_SQL = Statements("projections", "rebuild_lock.sql")
_TAKE = _SQL["take"]
_TAKE_FOR_TRANSACTION = _SQL["take_for_transaction"]
_CHECK = _SQL["check"]
_RELEASE = _SQL["release"]

#: Makes a session notice within half a second that its client was killed, even while it waits for a lock.
_NOTICE_LOSS = "-c client_connection_check_interval=500"


@asynccontextmanager
async def rebuild_lock(database_url: str, name: str) -> AsyncGenerator[AsyncConnection]:
    """A connection whose session holds the projection's rebuild lock. Raises `RebuildBusy`."""
    async with await connect(database_url) as connection:
        await _take(connection, _TAKE, name)
        try:
            yield connection
        finally:
            # Unlocked explicitly: the server ends a closed session a moment later, and the next rebuild would be
            # refused until then. If the connection is broken, the end of its session releases the lock.
            with suppress(Error):
                await connection.execute(_RELEASE, (name,))


async def check_rebuild_lock(connection: AsyncConnection, name: str) -> None:
    """Check that the connection of `rebuild_lock` still holds the lock.

    Raises `RebuildLockLost` where its session has ended, as at a restart of the server. Since then, another rebuild or a
    `prune` may have changed or dropped the build.
    """
    try:
        await connection.execute(_CHECK)
    except OperationalError as error:
        raise RebuildLockLost(name) from error


async def take_rebuild_lock(connection: AsyncConnection, name: str) -> None:
    """Hold the projection's rebuild lock until the end of the transaction. Raises `RebuildBusy`."""
    await _take(connection, _TAKE_FOR_TRANSACTION, name)


async def connect(database_url: str) -> AsyncConnection:
    """A session for a rebuild, without time limits."""
    given = str(conninfo_to_dict(database_url).get("options") or "")
    conninfo = make_conninfo(
        database_url, application_name="hydracore-rebuild", options=f"{given} {_NOTICE_LOSS}".strip()
    )
    connection = await AsyncConnection.connect(conninfo, autocommit=True)
    await connection.execute(UNLIMITED_SESSION)
    return connection


async def _take(connection: AsyncConnection, statement: bytes, name: str) -> None:
    if await (await connection.execute(statement, (name,))).fetchone() != (True,):
        raise RebuildBusy(name)
