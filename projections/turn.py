"""Whose turn it is: one rebuild of a projection at a time, and no change by hand meanwhile that it would not see.

An advisory lock, gone with its process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from psycopg import AsyncConnection, Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from events.sql import Statements
from projections.errors import RebuildBusy
from projections.generations import UNLIMITED_SESSION

_SQL = Statements("projections", "turn.sql")
_TAKE = _SQL["take"]
_TAKE_FOR_TRANSACTION = _SQL["take_for_transaction"]
_GIVE = _SQL["give"]

#: A session whose client was killed lets go of its locks though it waits for one itself.
_NOTICE_LOSS = "-c client_connection_check_interval=500"


@asynccontextmanager
async def turn(database_url: str, name: str) -> AsyncGenerator[AsyncConnection]:
    """A connection whose session alone rebuilds the projection. Raises `RebuildBusy`."""
    async with await connect(database_url) as connection:
        await _take(connection, _TAKE, name)
        try:
            yield connection
        finally:
            # A session that is closed goes a moment later, and whoever comes at once would be turned away by it. One that cannot
            # be asked any more takes the lock with it.
            with suppress(Error):
                await connection.execute(_GIVE, (name,))


async def take_turn(connection: AsyncConnection, name: str) -> None:
    """Let nobody rebuild the projection until the transaction ends. Raises `RebuildBusy`."""
    await _take(connection, _TAKE_FOR_TRANSACTION, name)


async def connect(database_url: str) -> AsyncConnection:
    """A session in which a rebuild may take as long as it does."""
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
