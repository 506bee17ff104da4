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
FLIGHTS_MAX = 4


class Coalescer(Generic[K, V]):
    """Batches reads. `fetch` returns the values of the keys that have one. What it raises is raised to all of them."""

    def __init__(self, fetch: Callable[[list[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._flights: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """The value of `key` now, or None where there is none."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if len(self._flights) < FLIGHTS_MAX:
            # The task starts in the next turn of the loop, and so takes along what else is asked for in this one.
            self._flights.add(asyncio.create_task(self._fly()))
        return await future

    async def _fly(self) -> None:
        flight = asyncio.current_task()
        assert flight is not None
        try:
            while self._waiting:
                await self._fetch_some()
        finally:
            # In the same step in which the loop finds nobody waiting, so that a later reader starts a new flight. If
            # this was done in the next turn of the event loop, that reader would rely on this flight, and wait until
            # somebody else asks.
            self._flights.discard(flight)

    async def _fetch_some(self) -> None:
        keys = [key for key, _ in zip(self._waiting, range(BATCH_MAX), strict=False)]
        askers = [(key, self._waiting.pop(key)) for key in keys]
        try:
            found = await self._fetch(keys)
        except Exception as error:  # noqa: BLE001 - it is raised to those who asked
            for _, futures in askers:
                _settle(futures, lambda future, error=error: future.set_exception(error))
        else:
            for key, futures in askers:
                value = found.get(key)
                _settle(futures, lambda future, value=value: future.set_result(value))


def _settle(futures: list[asyncio.Future[V | None]], outcome: Callable[[asyncio.Future[V | None]], None]) -> None:
    for future in futures:
        # A reader that was cancelled waits no longer.
        if not future.done():
            outcome(future)
