"""Event logs under one roof, so that the same trouble can be made for each: ours, and the ways in which others read theirs.

Each writes numbered events of a few streams and has a reader that remembers how far it has come. What is right is asked of
the tables themselves, when all is quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, LiteralString, Protocol
from uuid import UUID, uuid5

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import IntegrityError, PersistenceError, StoredEvent
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from events.errors import EventsError
from events.ids import instance_id_for
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.inline import inline_projections
from tests import lifecycle
from tests.log_follower import LogFollower, version_of
from tests.store_commands import origin, request

Mark = tuple[str, int]
"""A stream and the number of an event in it."""

STREAMS = 6
NAMESPACE = UUID(int=7)


class Log(Protocol):
    """`table`: where the events are; `truth`: the statement that gives every mark that is in it."""

    name: ClassVar[str]
    table: ClassVar[str]
    truth: ClassVar[LiteralString]

    def stream_name(self, stream: int) -> str:
        """What a stream is called in marks."""
        ...

    async def write(self, stream: int, number: int) -> None:
        """Append one event: whole, or not at all and an exception."""
        ...

    async def read(self) -> list[Mark]:
        """What is new since the last call."""
        ...

    async def move(self, url: str) -> None:
        """From now on the database is at `url`; how far the reader is stays with the reader."""
        ...


class OurLog:
    """Read as its followers read it."""

    name: ClassVar[str] = "HydraCore"
    table: ClassVar[str] = "event"
    truth: ClassVar[LiteralString] = "SELECT stream_id::text, version FROM event"

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._following = LogFollower()
        self._use(pool)

    def _use(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._store = EventStore(pool, inline=inline_projections())

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, *, prepared: bool = True) -> AsyncGenerator[OurLog]:
        async with open_pool(url, role="", application="writer", size=STREAMS, prepared=prepared) as pool:
            log = cls(pool)
            yield log
            await log._store.close()

    def stream_name(self, stream: int) -> str:
        return str(_instance_id(stream))

    async def write(self, stream: int, number: int) -> None:
        stream_id = _instance_id(stream)
        if number == 1:
            await self._store.execute(stream_id, request(f"customer-{stream}"), origin())
        else:
            await self._store.execute(stream_id, lifecycle.usage(number - 1), origin())

    async def read(self) -> list[Mark]:
        async with self._pool.connection() as connection:
            return [(str(fact.stream_id), version_of(fact)) for fact in await self._following.read_new(connection)]

    async def move(self, url: str) -> None:
        pool: AsyncConnectionPool = AsyncConnectionPool(url, kwargs={"autocommit": True}, max_size=STREAMS, open=False)
        await pool.open()
        self._use(pool)


def _instance_id(stream: int) -> UUID:
    return instance_id_for(tenant_id="acme", customer_id=f"customer-{stream}", idempotency_key="first")


class PositionLog:
    """A sequence, and a reader that asks for what is above the last number that it saw."""

    name = "position reader"
    table = "plain"
    truth = "SELECT stream, n FROM plain"
    ddl: ClassVar[LiteralString] = (
        "CREATE TABLE IF NOT EXISTS plain (position bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),"
        " stream text NOT NULL, n integer NOT NULL, UNIQUE (stream, n))"
    )
    select: ClassVar[LiteralString] = "SELECT stream, n, position FROM plain WHERE position > %s ORDER BY position"

    def __init__(self, url: str) -> None:
        self._url = url
        self._reader: AsyncConnection | None = None
        self._at: Any = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncGenerator[PositionLog]:
        async with await AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(cls.ddl)
        log = cls(url)
        yield log
        if log._reader is not None:
            await log._reader.close()

    def stream_name(self, stream: int) -> str:
        return f"stream-{stream}"

    async def write(self, stream: int, number: int) -> None:
        async with await AsyncConnection.connect(self._url, autocommit=True, application_name="writer") as connection:
            statement = "INSERT INTO plain (stream, n) VALUES (%s, %s) ON CONFLICT DO NOTHING"
            await connection.execute(statement, (self.stream_name(stream), number))

    async def read(self) -> list[Mark]:
        if self._reader is None:
            self._reader = await AsyncConnection.connect(self._url, autocommit=True, application_name="reader")
        rows = await self._select(self._reader)
        if rows:
            self._at = rows[-1][2]
        return [(stream, n) for stream, n, _ in rows]

    async def _select(self, connection: AsyncConnection) -> list[tuple[str, int, Any]]:
        return await (await connection.execute(self.select, (self._at,))).fetchall()

    async def move(self, url: str) -> None:
        self._url = url
        if self._reader is not None:
            await self._reader.close()
            self._reader = None


class HorizonLog(PositionLog):
    """A reader that orders by transaction and waits until no older one can still commit."""

    name = "xid-horizon reader"
    select = (
        "SELECT stream, n, ARRAY[xid::text::numeric, position] FROM plain"
        " WHERE (xid, position) > (%s::text::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot())"
        " ORDER BY xid, position"
    )

    async def _select(self, connection: AsyncConnection) -> list[tuple[str, int, Any]]:
        at = self._at or (0, 0)
        return await (await connection.execute(self.select, (str(int(at[0])), int(at[1])))).fetchall()


class Bench(Application[UUID]):
    """Its name becomes the name of the table."""


class EventsourcingLog:
    """pyeventsourcing's own recorder, with its table lock."""

    name = "pyeventsourcing 9.5, table lock"
    table = "bench_events"
    truth = "SELECT originator_id::text, originator_version::int FROM bench_events"
    functions = "no"

    def __init__(self, url: str) -> None:
        self._at = 0
        self._open(url)

    def _open(self, url: str) -> None:
        place = conninfo_to_dict(url)
        env = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(place["dbname"]),
            "POSTGRES_HOST": str(place["host"]),
            "POSTGRES_PORT": str(place["port"]),
            "POSTGRES_USER": str(place["user"]),
            "POSTGRES_PASSWORD": str(place.get("password", "")),
            "POSTGRES_POOL_SIZE": str(STREAMS),
            "POSTGRES_ENABLE_DB_FUNCTIONS": self.functions,
        }
        self._application = Bench(env=env)

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncGenerator[EventsourcingLog]:
        log = await asyncio.to_thread(cls, url)
        yield log
        await asyncio.to_thread(log._application.close)

    def stream_name(self, stream: int) -> str:
        return str(uuid5(NAMESPACE, str(stream)))

    async def write(self, stream: int, number: int) -> None:
        event = StoredEvent(UUID(self.stream_name(stream)), number, "topic", b"state")
        # What a broken connection left undecided may be there already.
        with suppress(IntegrityError):
            await asyncio.to_thread(self._application.recorder.insert_events, [event])

    async def read(self) -> list[Mark]:
        notifications = await asyncio.to_thread(
            self._application.recorder.select_notifications, self._at, 10_000, inclusive_of_start=False
        )
        if notifications:
            self._at = notifications[-1].id
        return [(str(one.originator_id), one.originator_version) for one in notifications]

    async def move(self, url: str) -> None:
        await asyncio.to_thread(self._application.close)
        await asyncio.to_thread(self._open, url)


class EventsourcingFunctionsLog(EventsourcingLog):
    """The same in its other mode, where a function of the database inserts and nothing is locked."""

    name = "pyeventsourcing 9.5, database functions"
    functions = "yes"


LOGS: tuple[Any, ...] = (OurLog, EventsourcingLog, EventsourcingFunctionsLog, HorizonLog, PositionLog)

#: What an append that was broken off may raise.
BROKEN = (psycopg.Error, PersistenceError, EventsError, OSError)
