"""Waiting for a condition of the outside world, the only reason for which a test may pause."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

POLL_S = 0.02

#: Whatever a test waits for has happened by then, also on a machine that is busy with other tests.
PATIENCE_S = 60.0


async def until(
    condition: Callable[[], object | Awaitable[object]], *, seconds_max: float = PATIENCE_S, poll_s: float = POLL_S
) -> None:
    """Wait until `condition()` (or what it awaits) is true. Raises `TimeoutError`. `poll_s`: more for costly conditions."""
    async with asyncio.timeout(seconds_max):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(poll_s)
