"""One worker at a time per instance.

A session-level advisory lock, so that it is gone the moment its process is. It keeps two workers from asking the provider
the same thing at once; that no server is doubled does not rest on it alone but on the server's name, its labels and the
version that every append expects. Needs a direct connection: behind a pooler in transaction mode, give the workers one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from hydracore.db.pool import conninfo

_LOCK = b"SELECT pg_try_advisory_lock(%s)"
_UNLOCK = b"SELECT pg_advisory_unlock(%s)"


class InstanceLocks:
    """The locks of one process, all on one connection of their own."""

    def __init__(self, database_url: str, *, role: str) -> None:
        self._conninfo = conninfo(database_url, role=role, application="hydracore-locks")
        self._connection: AsyncConnection | None = None
        self._connecting = asyncio.Lock()
        self._held: set[UUID] = set()

    @asynccontextmanager
    async def hold(self, instance_id: UUID) -> AsyncGenerator[bool]:
        """True while this process works on the instance alone; False where somebody else does.

        Raises psycopg's errors where the database is away.
        """
        if instance_id in self._held:
            yield False
            return
        self._held.add(instance_id)
        try:
            connection = await self._connected()
            if not await _ask(connection, _LOCK, instance_id):
                yield False
                return
            try:
                yield True
            finally:
                # A connection that broke has let go of its locks already.
                with suppress(psycopg.OperationalError, psycopg.InterfaceError):
                    await _ask(connection, _UNLOCK, instance_id)
        finally:
            self._held.discard(instance_id)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> AsyncConnection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await AsyncConnection.connect(self._conninfo, autocommit=True)
            return self._connection


async def _ask(connection: AsyncConnection, statement: bytes, instance_id: UUID) -> bool:
    key = int.from_bytes(instance_id.bytes[8:], signed=True)
    cursor = await connection.execute(statement, (key,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])
