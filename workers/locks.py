"""One worker at a time per instance.

A session-level advisory lock, so that it is gone the moment its process is. It keeps two workers from asking the provider
the same thing at once; that no server is doubled does not rest on it alone but on the server's name, its labels and the
version that every append expects. Needs a direct connection: behind a pooler in transaction mode, give the workers one.
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

from events.exchange import Rows, Statement, break_off, exchange, number
from events.ids import lane_of
from hydracore.db.pool import NOTICE_LOSS, conninfo
from workers.sql import OPERATIONS

_TRY_LOCK = OPERATIONS["try_lock"]
_UNLOCK = OPERATIONS["unlock"]
_VERSION = OPERATIONS["version"]

CONNECT_S_MAX = 5

#: A process that is frozen keeps its session, whose keepalives the kernel answers: one from which nothing is heard for so long is
#: ended by the server, and its locks with it.
SILENCE_S_MAX = 30.0

#: How often a process lets itself be heard in that time.
BEATS = 6

_BROKEN = (psycopg.OperationalError, psycopg.InterfaceError)


@dataclass
class Hold:
    """One hold of an instance. `version_after`: its stream's version once others could take the lock; None if unknown."""

    connection: AsyncConnection
    version_after: int | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the session that had the lock is known to be gone: somebody else may have it."""
        return self.connection.closed


class InstanceLocks:
    """The locks of one process, all on one connection of their own."""

    def __init__(self, database_url: str, *, role: str, silence_s_max: float = SILENCE_S_MAX) -> None:
        """A process that is frozen for `silence_s_max` loses its locks."""
        acting = conninfo(database_url, role=role, application="hydracore-locks")
        given = str(conninfo_to_dict(acting).get("options") or "")
        # A machine that lost its power or its network lets go of its locks within half a minute instead of the two hours that are usual.
        silence = f"-c idle_session_timeout={int(silence_s_max * 1000)}"
        self._conninfo = make_conninfo(acting, options=f"{given} {NOTICE_LOSS} {silence}".strip())
        self._beat_s = silence_s_max / BEATS
        self._beating: asyncio.Task[None] | None = None
        self._connection: AsyncConnection | None = None
        self._connecting = asyncio.Lock()
        self._held: set[UUID] = set()

    @asynccontextmanager
    async def hold(self, instance_id: UUID) -> AsyncGenerator[Hold | None]:
        """A hold while this process works on the instance alone; None where somebody else does.

        Raises psycopg's errors where the database is away.
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
            # Before the look at the stream, so that nobody is turned away after it. Whoever of this process comes now may
            # get the lock before it is let go: a session counts how often it has one.
            self._held.discard(instance_id)
            if hold is not None:
                # A connection that broke has let go of its locks already.
                with suppress(*_BROKEN):
                    hold.version_after = await _let_go(hold.connection, instance_id)

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        if self._connection is not None:
            await break_off(self._connection)

    async def _take(self, instance_id: UUID) -> AsyncConnection | None:
        """The connection that now has the lock, or None where somebody else's has it."""
        connection = await self._connected()
        try:
            return connection if await _try_lock(connection, instance_id) else None
        except _BROKEN:
            # An idle connection learns only now that the database was restarted in the meantime.
            await break_off(connection)
        connection = await self._connected()
        return connection if await _try_lock(connection, instance_id) else None

    async def _connected(self) -> AsyncConnection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await AsyncConnection.connect(
                    self._conninfo, autocommit=True, connect_timeout=CONNECT_S_MAX
                )
                if self._beating is None:
                    self._beating = asyncio.create_task(self._beat())
            return self._connection

    async def _beat(self) -> None:
        """Keep the session, and learn that it is gone, which the next hold mends."""
        while True:
            await asyncio.sleep(self._beat_s)
            connection = self._connection
            if connection is not None and not connection.closed:
                try:
                    await connection.execute("SELECT 1")
                except _BROKEN:
                    await break_off(connection)


async def _try_lock(connection: AsyncConnection, instance_id: UUID) -> bool:
    (((locked,),),) = await _ask(connection, Statement(_TRY_LOCK, (_key(instance_id),)))
    return locked == b"t"


async def _let_go(connection: AsyncConnection, instance_id: UUID) -> int | None:
    """The stream's version, which was read after the lock was let go; None without a stream."""
    place = (b"%d" % lane_of(instance_id), str(instance_id).encode())
    _, versions = await _ask(connection, Statement(_UNLOCK, (_key(instance_id),)), Statement(_VERSION, place))
    return number(versions[0][0]) if versions else None


def _key(instance_id: UUID) -> bytes:
    return b"%d" % int.from_bytes(instance_id.bytes[8:], signed=True)


async def _ask(connection: AsyncConnection, *statements: Statement) -> list[Rows]:
    try:
        return await exchange(connection, statements)
    except asyncio.CancelledError:
        # Nobody knows any more whether this session has the lock: without the session, nobody has.
        await break_off(connection)
        raise
