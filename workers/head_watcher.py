# redis-py types its pub/sub in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Watches the heads of the lanes, and wakes the followers of the log in this process when there are new events.

Messages of Redis wake them at once. Polling the heads in PostgreSQL, once for all followers, makes up for lost messages.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from events.cancellation import preserve_cancellation
from events.retries import run
from hydracore.redis_errors import REDIS_ERRORS
from hydracore.wake import CHANNEL
from workers.error_boundary import error_boundary
from workers.sql import OPERATIONS

_ALL_HEADS = OPERATIONS["all_heads"]

#: The time between two polls: the longest delay that a lost message causes.
POLL_S = 0.25

#: The longest that a follower waits before it looks by itself: a process that had leased a lane may have died, or a lane's parking time
#: may be over.
WAIT_S_MAX = 1.0

#: How long one read of the subscription waits for a message before it checks for cancellation.
LISTEN_S = 1.0

#: Pause after a failure of Redis or PostgreSQL.
RECOVER_S = 0.5


class HeadWatcher:
    """Wakes followers when the log has new events. `run` has to run beside them."""

    def __init__(self, pool: AsyncConnectionPool, redis: Redis) -> None:
        self._pool = pool
        self._redis = redis
        self._new_events = asyncio.Event()

    async def run(self) -> None:
        """Listen to Redis and poll PostgreSQL for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._poll())

    @property
    def new_events(self) -> asyncio.Event:
        """Is set when the log gets new events. Take it before a look at the log, so that none are missed between look and wait."""
        return self._new_events

    async def _listen(self) -> NoReturn:
        """Wake the followers at each message of Redis. While Redis is unavailable, polling does."""
        while True:
            async with error_boundary("listener", recover_s=RECOVER_S):
                # If the connection ends while this task is cancelled, its error takes the place of the cancellation.
                with preserve_cancellation(), suppress(*REDIS_ERRORS):
                    await self._receive()
                await asyncio.sleep(RECOVER_S)

    async def _receive(self) -> NoReturn:
        """Raises one of `REDIS_ERRORS` once Redis is unavailable."""
        async with self._redis.pubsub() as subscription:
            with preserve_cancellation():
                await subscription.subscribe(CHANNEL)
            while True:
                # redis-py may reconnect in here, and swallow a cancellation as it does.
                with preserve_cancellation():
                    message = await subscription.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                if message is not None:
                    self._wake()

    async def _poll(self) -> NoReturn:
        known = None
        while True:
            async with error_boundary("head_watcher", recover_s=RECOVER_S):
                heads = await run(self._pool, _ALL_HEADS)
                if heads != known:
                    known = heads
                    self._wake()
                await asyncio.sleep(POLL_S)

    def _wake(self) -> None:
        self._new_events.set()
        self._new_events = asyncio.Event()


async def wait_for_events(new_events: asyncio.Event) -> None:
    """Wait until `new_events` is set, but for `WAIT_S_MAX` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S_MAX):
            await new_events.wait()
