"""Waiting for a condition of the outside world, the only reason for which a test may pause."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

POLL_S = 0.02


async def until(condition: Callable[[], object | Awaitable[object]], *, seconds_max: float = 20) -> None:
    """Wait until `condition()` (or what it awaits) is true. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds_max):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(POLL_S)
