"""Serializes the changes of each stream within a process, in the order in which they were asked for.

Concurrent changes of a stream would have to be decided again for each one that was faster, and the last of many would lose more races
than its caller can wait for. Between processes the log's version check decides who was first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakValueDictionary

from events.errors import StoreUnavailable
from events.retries import RETRY_S_MAX


class StreamLocks:
    def __init__(self) -> None:
        #: By the id of a stream that is being changed. Weak: a lock lasts as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, stream_id: UUID) -> AsyncGenerator[None]:
        """Hold the lock of this stream. Raises `StoreUnavailable` if earlier changes take longer than `RETRY_S_MAX`."""
        lock = self._locks.setdefault(stream_id, asyncio.Lock())
        try:
            async with asyncio.timeout(RETRY_S_MAX):
                await lock.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("Too many concurrent changes; try again later") from error
        try:
            yield
        finally:
            lock.release()
