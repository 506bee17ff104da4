"""Locks that let only one worker at a time work on an instance.

They are session-level advisory locks, so that PostgreSQL releases them as soon as their process has died. They keep two workers from
sending the provider the same request at once. They are not the only protection against a second server: so are the server's name, its
labels, and the version that each append expects. They need a direct connection, so a pooler in transaction mode does not do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from events.exchange import Rows, Statement, disconnect, exchange, parse_int
from events.ids import lane_of
from hydracore.db.pool import DEAD_CLIENT_OPTIONS, conninfo
from workers.sql import OPERATIONS

_TRY_LOCK = OPERATIONS["try_lock"]
_UNLOCK = OPERATIONS["unlock"]
_VERSION = OPERATIONS["version"]

CONNECT_S_MAX = 5

#: PostgreSQL ends a session, and releases its locks, after this time without a statement. Otherwise a frozen process would keep its
#: session: its kernel still answers TCP keepalives.
IDLE_S_MAX = 30.0

#: How many statements a process sends in that time to keep its session.
KEEPALIVES = 6

_BROKEN = (psycopg.OperationalError, psycopg.InterfaceError)


@dataclass
class Hold:
    """A lock that is held on an instance.

    `version_after`: the version of the instance's stream, read after the lock was released; None if unknown.
    """

    connection: AsyncConnection
    version_after: int | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the session that had the lock is known to have ended. Another process may have the lock by now."""
        return self.connection.closed


class InstanceLocks:
    """The locks of one process, which all use one dedicated connection."""

    def __init__(self, database_url: str, *, role: str, idle_s_max: float = IDLE_S_MAX) -> None:
        """A process that is frozen for `idle_s_max` seconds loses its locks."""
        acting = conninfo(database_url, role=role, application="hydracore-locks")
        given = str(conninfo_to_dict(acting).get("options") or "")
        # If the machine loses power or network, its locks are released within half a minute, instead of the usual two hours.
        idle_timeout = f"-c idle_session_timeout={int(idle_s_max * 1000)}"
        self._conninfo = make_conninfo(acting, options=f"{given} {DEAD_CLIENT_OPTIONS} {idle_timeout}".strip())
        self._keepalive_s = idle_s_max / KEEPALIVES
        self._keepalive_task: asyncio.Task[None] | None = None
        self._connection: AsyncConnection | None = None
        self._connecting = asyncio.Lock()
        self._held: set[UUID] = set()

    @asynccontextmanager
    async def hold(self, instance_id: UUID) -> AsyncGenerator[Hold | None]:
        """Hold the lock of the instance, or yield None if another worker or task holds it.

        Raises psycopg's errors if the database is unavailable.
        """
        if instance_id in self._held:
            yield None
            return
        self._held.add(instance_id)
        try:
            connection = await self._take(instance_id)
        except BaseException:
            self._held.discard(instance_id)
            raise
        hold = None if connection is None else Hold(connection)
        try:
            yield hold
        finally:
            # First, so that no task of this process is turned away after the stream's version was read. Such a task may get the lock
            # before it is released below. That is safe, because a session counts how often it holds an advisory lock.
            self._held.discard(instance_id)
            if hold is not None:
                # If the connection broke, its locks are released already.
                with suppress(*_BROKEN):
                    hold.version_after = await _unlock(hold.connection, instance_id)

    async def close(self) -> None:
        if self._keepalive_task is not None:
            self._keepalive_task.cancel()
            await asyncio.wait([self._keepalive_task])
        if self._connection is not None:
            await disconnect(self._connection)

    async def _take(self, instance_id: UUID) -> AsyncConnection | None:
        """The connection that now holds the lock, or None if another process holds it."""
        connection = await self._connected()
        try:
            return connection if await _try_lock(connection, instance_id) else None
        except _BROKEN:
            # The database may have been restarted, which an idle connection notices only now.
            await disconnect(connection)
        connection = await self._connected()
        return connection if await _try_lock(connection, instance_id) else None

    async def _connected(self) -> AsyncConnection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await AsyncConnection.connect(
                    self._conninfo, autocommit=True, connect_timeout=CONNECT_S_MAX
                )
                if self._keepalive_task is None:
                    self._keepalive_task = asyncio.create_task(self._keep_alive())
            return self._connection

    async def _keep_alive(self) -> None:
        """Keep the session alive, and close its connection once it is lost. The next `hold` connects again."""
        while True:
            await asyncio.sleep(self._keepalive_s)
            connection = self._connection
            if connection is not None and not connection.closed:
                try:
                    await connection.execute("SELECT 1")
                except _BROKEN:
                    await disconnect(connection)


async def _try_lock(connection: AsyncConnection, instance_id: UUID) -> bool:
    (((locked,),),) = await _exchange(connection, Statement(_TRY_LOCK, (_key(instance_id),)))
    return locked == b"t"


async def _unlock(connection: AsyncConnection, instance_id: UUID) -> int | None:
    """Release the lock. Returns the stream's version, which is read after that, or None if there is no stream."""
    place = (b"%d" % lane_of(instance_id), str(instance_id).encode())
    _, versions = await _exchange(connection, Statement(_UNLOCK, (_key(instance_id),)), Statement(_VERSION, place))
    return parse_int(versions[0][0]) if versions else None


def _key(instance_id: UUID) -> bytes:
    return b"%d" % int.from_bytes(instance_id.bytes[8:], signed=True)


async def _exchange(connection: AsyncConnection, *statements: Statement) -> list[Rows]:
    try:
        return await exchange(connection, statements)
    except asyncio.CancelledError:
        # Whether this session holds the lock is unknown now. Ending the session releases it in any case.
        await disconnect(connection)
        raise
