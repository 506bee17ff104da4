"""Run until done or told to stop: Ctrl-C, TERM and a closed terminal all mean the same, and mean it once."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

#: Exit status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED: Final = 130

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


def run_until_signal(
    work: Coroutine[Any, Any, None], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> bool:
    """Run `work`; a signal cancels it, and it may then tidy up in peace. Whether it came to its own end.

    A closed terminal that was to be ignored stays so, as nohup wants it. Ctrl-C does not: shells have what a script starts in the
    background ignore it, and who sends it there all the same means it. Outside the main thread, where none arrives, nothing changes.
    """
    # A loop that is closed leaves no handler of whoever had one before.
    with _handlers_kept(), asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_watched(work))


def run_to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Where a signal comes first, it is cancelled as by `run_until_signal`, and this raises
    `KeyboardInterrupt`.
    """
    given = list[T]()

    async def kept() -> None:
        given.append(await work)

    if not run_until_signal(kept()):
        raise KeyboardInterrupt
    return given[0]


def stop_asked_for() -> asyncio.Event:
    """An event of the running loop that a signal sets, for those who must not be cancelled: they look for their own end."""
    asked = asyncio.Event()
    for number in heard_signals():
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _watched(work: Coroutine[Any, Any, None]) -> bool:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    heard = heard_signals()

    def stop() -> None:
        # A second, impatient signal must not break off the tidying up, which has a time limit of its own.
        for number in heard:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in heard:
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


@contextmanager
def interrupted_by_signals() -> Generator[None]:
    """For work without a loop: a signal raises `KeyboardInterrupt` in the block, which may then tidy up in peace.

    As by `run_until_signal`, a closed terminal that was to be ignored stays so.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in heard:
            signal.signal(number, _once_is_enough)
        raise KeyboardInterrupt

    with _handlers_kept() as heard:
        for number in heard:
            signal.signal(number, interrupt)
        yield


@contextmanager
def signals_heard(told: Callable[[], None]) -> Generator[Callable[[], None]]:
    """For work of other threads, while the main one, which calls this, waits: each signal calls `told`, and what this gives returns
    once one has come.

    What wakes it is a byte from the system's own handler. A lock would not do: a signal that comes right before it is waited for, or
    that another thread takes, does not wake who waits, and Python calls no handler until they are awake.
    """
    has_come = False

    def hear(_number: int, _frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        told()

    def wait() -> None:
        while not has_come:
            reader.recv(1)

    reader, writer = socket.socketpair()
    with reader, writer, _handlers_kept() as heard:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            for number in heard:
                signal.signal(number, hear)
            yield wait
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _handlers_kept() -> Generator[list[signal.Signals]]:
    """The signals that are heard, which are handled behind the block as they were before it."""
    before = {number: signal.getsignal(number) for number in heard_signals()}
    try:
        yield list(before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heard_signals() -> list[signal.Signals]:
    """Those that stop this process: not a closed terminal that was to be ignored, and none outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return []
    is_kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_kept]


def _once_is_enough(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that are started would inherit."""
