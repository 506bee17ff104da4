"""Run until done or told to stop: Ctrl-C, TERM and a closed terminal all mean the same, and mean it once."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
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


@contextmanager
def interrupted_by_signals() -> Generator[None]:
    """For work without a loop: a signal raises `KeyboardInterrupt` in the block, which may then tidy up in peace.

    Signals that were ignored stay so, as nohup wants it. Outside the main thread, where none arrives, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in heard:
            signal.signal(number, _once_is_enough)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _once_is_enough(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that are started would inherit."""
