"""Reads that come together share one statement.

A round trip through an asynchronous driver costs far more time here than finding a row does there. Keys that are asked
for in one turn of the event loop, or while all flights are out, are therefore fetched as one batch. A flight takes off
after its keys were asked for, so whoever reads sees at least what was committed before they asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: How many keys one fetch carries at most.
BATCH_MAX = 64

#: How many fetches are under way at once, each on a connection of its own.
FLIGHTS_MAX = 4


class Coalescer(Generic[K, V]):
    """`fetch` gives the values of the keys that have one. What it raises, all who shared the flight see."""

    def __init__(self, fetch: Callable[[list[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._flights: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """The value of `key` now, or None where there is none."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if len(self._flights) < FLIGHTS_MAX:
            # The task starts in the next turn of the loop: what else is asked for in this one goes with it.
            self._flights.add(asyncio.create_task(self._fly()))
        return await future

    async def _fly(self) -> None:
        flight = asyncio.current_task()
        assert flight is not None
        try:
            while self._waiting:
                await self._fetch_some()
        finally:
            # In the same step as the look that finds nobody waiting: whoever asks after it starts a flight of their own. Left for the next
            # turn of the loop, they would take this one for under way, and wait until somebody else asks.
            self._flights.discard(flight)

    async def _fetch_some(self) -> None:
        keys = [key for key, _ in zip(self._waiting, range(BATCH_MAX), strict=False)]
        askers = [(key, self._waiting.pop(key)) for key in keys]
        try:
            found = await self._fetch(keys)
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked
            for _, futures in askers:
                _settle(futures, lambda future, error=error: future.set_exception(error))
        else:
            for key, futures in askers:
                value = found.get(key)
                _settle(futures, lambda future, value=value: future.set_result(value))


def _settle(futures: list[asyncio.Future[V | None]], outcome: Callable[[asyncio.Future[V | None]], None]) -> None:
    for future in futures:
        # Somebody who was cancelled no longer waits.
        if not future.done():
            outcome(future)
