"""`/health`: whether this process is alive, and whether it can serve."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.asyncio import Redis

from hydracore.api.operations import Answer, operation
from hydracore.redis_errors import REDIS_ERRORS

#: The most seconds for a dependency to answer before it counts as down.
CHECK_TIMEOUT_S: Final = 2.0

#: The key that the check of Redis writes, and its time to live in seconds.
CHECK_KEY: Final = "hydracore:health"
CHECK_KEY_S: Final = 60

_OK: Final = "ok"
_DOWN: Final = "down"


class Liveness(msgspec.Struct, frozen=True):
    status: str


class Readiness(msgspec.Struct, frozen=True):
    """`status`: ready, degraded (it serves, slower) or unready. `checks`: each dependency, ok or down."""

    status: str
    checks: dict[str, str]


class Health:
    def __init__(self, pool: AsyncConnectionPool, redis: Redis) -> None:
        self._pool = pool
        self._redis = redis
        self._database_task: asyncio.Task[str] | None = None
        self._redis_task: asyncio.Task[str] | None = None

    @operation("GET", "/health/live", "Liveness", answer=Liveness)
    async def live(self) -> Liveness:
        return Liveness(_OK)

    @operation("GET", "/health/ready", "Readiness", answer=Readiness, also=(503,))
    async def ready(self) -> Answer:
        """Redis only carries wake-ups: without it the API serves, and orders are executed once it is back."""
        database, redis = await asyncio.gather(self._check_database(), self._check_redis())
        status = "unready" if database == _DOWN else "degraded" if redis == _DOWN else "ready"
        body = Readiness(status, {"database": database, "redis": redis})
        return Answer(503 if database == _DOWN else 200, msgspec.json.encode(body))

    async def _check_database(self) -> str:
        """Check the database. A check that times out continues for the next callers: cancelling it would have to wait too."""
        if self._database_task is None or self._database_task.done():
            self._database_task = asyncio.create_task(self._query_database())
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await asyncio.shield(self._database_task)
        except TimeoutError:
            return _DOWN

    async def _query_database(self) -> str:
        try:
            async with self._pool.connection(CHECK_TIMEOUT_S) as connection:
                await connection.execute("SELECT 1")
        except (psycopg.Error, PoolTimeout):
            return _DOWN
        return _OK

    async def _check_redis(self) -> str:
        """Check Redis. All callers share one check: callers are not authenticated, and each check occupies a connection."""
        if self._redis_task is None or self._redis_task.done():
            self._redis_task = asyncio.create_task(self._query_redis())
        return await asyncio.shield(self._redis_task)

    async def _query_redis(self) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                # A write: a replica, or a Redis without memory, cannot carry wake-ups.
                await self._redis.set(CHECK_KEY, "", ex=CHECK_KEY_S)
        except REDIS_ERRORS:
            return _DOWN
        return _OK
