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
from events.patience import PATIENCE_S


class Turns:
    def __init__(self) -> None:
        #: The locks of the streams that are being changed or waited for.
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, stream_id: UUID) -> AsyncGenerator[None]:
        """Hold the turn at this stream. Raises `StoreUnavailable` if earlier ones take longer than `PATIENCE_S`."""
        lock = self._locks.setdefault(stream_id, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await lock.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("Too many concurrent changes; try again later") from error
        try:
            yield
        finally:
            lock.release()
