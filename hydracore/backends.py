"""Opens Redis and the log's store, which publishes on Redis which lanes have grown."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.store import EventStore
from hydracore.wake import Publisher
from projections.inline import inline_projections

#: The most seconds that Redis may take to connect, and to answer a command.
REDIS_TIMEOUT_S: Final = 5


def open_redis(url: str) -> Redis:
    """A client that connects when it is first used. Close it by `async with`."""
    return Redis.from_url(url, socket_connect_timeout=REDIS_TIMEOUT_S, socket_timeout=REDIS_TIMEOUT_S)  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments


@asynccontextmanager
async def open_store(pool: AsyncConnectionPool, redis: Redis) -> AsyncGenerator[EventStore]:
    """The log, with its inline projections. At the end it waits for appends and wake-ups that are under way."""
    publisher = Publisher(redis)
    store = EventStore(pool, inline=inline_projections(), on_commit=publisher.publish)
    try:
        yield store
    finally:
        try:
            await store.close()
        finally:
            await publisher.close()
