"""Reads of the same time share one statement.

A round trip through an asynchronous driver takes far longer than finding a row. So keys that are asked for in one turn
of the event loop, or while the maximum of fetches is running, are fetched as one batch. A fetch starts after its keys
were asked for, so a reader sees at least what was committed before it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: The most keys per fetch.
BATCH_MAX = 64

#: The most fetches at a time, each on its own connection.
FETCHES_MAX = 4


class Coalescer(Generic[K, V]):
    """Batches reads. `fetch` returns the values of the keys that have one. What it raises is raised to all of them."""

    def __init__(self, fetch: Callable[[list[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._fetches: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """The value of `key` now, or None where there is none."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if len(self._fetches) < FETCHES_MAX:
            # The task starts in the next turn of the loop, and so takes along what else is asked for in this one.
            self._fetches.add(asyncio.create_task(self._fetch_waiting()))
        return await future

    async def _fetch_waiting(self) -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            while self._waiting:
                await self._fetch_batch()
        finally:
            # Without an await since no reader was found waiting, so that a later reader starts a new task. After an
            # await, a reader that came in between would rely on this task, and wait until another reader asks.
            self._fetches.discard(this)

    async def _fetch_batch(self) -> None:
        keys = [key for key, _ in zip(self._waiting, range(BATCH_MAX), strict=False)]
        readers = [(key, self._waiting.pop(key)) for key in keys]
        try:
            found = await self._fetch(keys)
        except Exception as error:  # noqa: BLE001 - it is raised to those who asked
            for _, futures in readers:
                _resolve(futures, lambda future, error=error: future.set_exception(error))
        else:
            for key, futures in readers:
                value = found.get(key)
                _resolve(futures, lambda future, value=value: future.set_result(value))


def _resolve(futures: list[asyncio.Future[V | None]], outcome: Callable[[asyncio.Future[V | None]], None]) -> None:
    for future in futures:
        # A reader that was cancelled waits no longer.
        if not future.done():
            outcome(future)
