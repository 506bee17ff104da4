# redis-py types its pub/sub in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Watches the heads of the lanes: tells everybody in this process who follows the log that lanes have moved.

Redis's hints tell at once. A look at the heads, one for all followers, tells whatever became of a hint.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.cancellation import cancellation_heard
from events.patience import run
from hydracore.redis_errors import NO_ANSWER
from hydracore.wake import CHANNEL
from workers.enduring import enduring
from workers.sql import OPERATIONS

_ALL_HEADS = OPERATIONS["all_heads"]

#: How long a lost hint can go unnoticed.
POLL_S = 0.25

#: How long a follower rests at most without a look of its own: a lane may have been left by another process that died, or
#: may have been parked for long enough.
REST_S_MAX = 1.0

#: How long it listens before it looks whether it is to stop.
LISTEN_S = 1.0

#: Pause after a failure of Redis or PostgreSQL.
RECOVER_S = 0.5


class HeadWatcher:
    """`run` it beside the followers."""

    def __init__(self, pool: AsyncConnectionPool, redis: Redis) -> None:
        self._pool = pool
        self._redis = redis
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Listen and look for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._look())

    @property
    def moved(self) -> asyncio.Event:
        """What the next move sets. Take it before a look at the log, so that no move falls between look and wait."""
        return self._moved

    async def _listen(self) -> NoReturn:
        """Turn messages into wake-ups; while Redis is away, looking does."""
        while True:
            async with enduring("listener", recover_s=RECOVER_S):
                # In a connection that goes meanwhile, its end takes the place of ours.
                with cancellation_heard(), suppress(*NO_ANSWER):
                    await self._hear()
                await asyncio.sleep(RECOVER_S)

    async def _hear(self) -> NoReturn:
        """Raises `NO_ANSWER` once Redis has gone."""
        async with self._redis.pubsub() as subscription:
            with cancellation_heard():
                await subscription.subscribe(CHANNEL)
            while True:
                # It may connect anew in here, and forget then that it was told to stop.
                with cancellation_heard():
                    message = await subscription.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is not None:
                    self._tell()

    async def _look(self) -> NoReturn:
        known = None
        while True:
            async with enduring("head_watcher", recover_s=RECOVER_S):
                heads = await run(self._pool, _ALL_HEADS)
                if heads != known:
                    known = heads
                    self._tell()
                await asyncio.sleep(POLL_S)

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


async def rest(moved: asyncio.Event) -> None:
    """Wait for a move, but not for ever."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REST_S_MAX):
            await moved.wait()
