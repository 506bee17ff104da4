"""Turns at a stream: within a process its changes come one after the other, in the order in which they were asked for.

Each would have to be decided again for every other one that was faster, and the last of many at once would lose more races than a
caller can be asked to wait for. Between processes the log itself tells who was first.
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
        #: Of the streams that somebody changes or waits for.
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, stream_id: UUID) -> AsyncGenerator[None]:
        """Meanwhile nobody else has a turn at this stream.

        Raises `StoreUnavailable` where those before are not done in `PATIENCE_S` seconds.
        """
        lock = self._locks.setdefault(stream_id, asyncio.Lock())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await lock.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("Others are changing this; try again later") from error
        try:
            yield
        finally:
            lock.release()
