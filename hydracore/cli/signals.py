"""Run until done or told to stop: Ctrl-C, TERM and a closed terminal all mean the same, and mean it once."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Final

#: Exit status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED: Final = 130

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_signal(work: Coroutine[None, None, None]) -> bool:
    """Run `work`; a signal cancels it, and it may then tidy up in peace. Whether it came to its own end."""
    return asyncio.run(_watched(work))


async def _watched(work: Coroutine[None, None, None]) -> bool:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def stop() -> None:
        # A second, impatient signal must not break off the tidying up, which has a time limit of its own.
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True
