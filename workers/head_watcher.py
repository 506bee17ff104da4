# redis-py types its pub/sub in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Watches the heads of the lanes: tells everybody in this process who follows the log that lanes have moved.

Redis's hints tell at once. A look at the heads, one for all followers, tells whatever became of a hint.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

import structlog
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.cancellation import cancellation_heard
from events.errors import StoreUnavailable
from events.patience import run
from hydracore.redis_errors import NO_ANSWER
from hydracore.wake import CHANNEL
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

_log = structlog.get_logger(__name__)


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
            # In a connection that goes meanwhile, its end takes the place of ours.
            with cancellation_heard(), suppress(*NO_ANSWER):
                async with self._redis.pubsub() as subscription:
                    with cancellation_heard():
                        await subscription.subscribe(CHANNEL)
                    while True:
                        # It may connect anew in here, and forget then that it was told to stop.
                        with cancellation_heard():
                            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                        if message is not None:
                            self._tell()
            await asyncio.sleep(RECOVER_S)

    async def _look(self) -> NoReturn:
        known = None
        while True:
            try:
                heads = await run(self._pool, _ALL_HEADS)
            except StoreUnavailable as error:
                _log.warning("head_watcher_waits", error=type(error).__name__)
                await asyncio.sleep(RECOVER_S)
                continue
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
