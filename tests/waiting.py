"""Waiting for a condition of the outside world, the only reason for which a test may pause."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

#: The first pause between two looks. Later ones grow with the time that has passed, so that looking costs little where
#: much is to be waited for, and ends are seen a tenth too late at most.
POLL_S = 0.02
POLL_PER_S = 0.1
POLL_S_MAX = 0.25

#: What a writer in the background leaves between two writes: a log that grows is wanted, and no long one.
BETWEEN_WRITES_S = 0.005

#: Whatever a test waits for has happened by then, also on a machine that is busy with other tests.
PATIENCE_S = 60.0

#: The same for the child processes of verifications and rebuilds, which leave most of a busy machine to others.
NICE_PATIENCE_S = 180.0


async def until(
    condition: Callable[[], object | Awaitable[object]], *, seconds_max: float = PATIENCE_S, poll_s: float = POLL_S
) -> None:
    """Wait until `condition()` (or what it awaits) is true. Raises `TimeoutError`. `poll_s`: more for costly conditions."""
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(seconds_max):
        began_s = clock()
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            await asyncio.sleep(min(max(poll_s, POLL_PER_S * (clock() - began_s)), POLL_S_MAX))
