"""Runs work until it is done or the first signal stops it: SIGINT, SIGTERM and SIGHUP all do the same."""

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
    """Run `work`. A signal cancels it; further signals do not disturb its cleanup. Returns whether it ended by itself.

    SIGHUP stays ignored if it was, as under nohup. SIGINT does not: shells start background commands
    of scripts with SIGINT ignored, but a user who sends it to one wants it to stop. Outside the main
    thread, which alone gets signals, no handler is set.
    """
    # Closing the loop would not restore the handlers that were set before.
    with _handlers_restored(), asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_watched(work))


def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` and return its result. Raises `KeyboardInterrupt` if a signal cancels `work`, as in `run_until_signal`."""
    results = list[T]()

    async def keep_result() -> None:
        results.append(await work)

    if not run_until_signal(keep_result()):
        raise KeyboardInterrupt
    return results[0]


def stop_event() -> asyncio.Event:
    """An event that a signal sets, for work in the running loop that must not be cancelled and ends by itself."""
    stop_requested = asyncio.Event()
    for number in handled_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop_requested.set)
    return stop_requested


async def _watched(work: Coroutine[Any, Any, None]) -> bool:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    handled = handled_signals()

    def stop() -> None:
        # A second signal must not break off the cleanup, which has its own time limit.
        for number in handled:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


@contextmanager
def interrupted_by_signals() -> Generator[None]:
    """For work without a loop: the first signal raises `KeyboardInterrupt` in the block; further ones are ignored.

    As with `run_until_signal`, SIGHUP stays ignored if it was.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in handled:
            signal.signal(number, _ignore)
        raise KeyboardInterrupt

    with _handlers_restored() as handled:
        for number in handled:
            signal.signal(number, interrupt)
        yield


@contextmanager
def signal_waiter(on_signal: Callable[[], None]) -> Generator[Callable[[], None]]:
    """For a main thread that waits for other threads. Each signal calls `on_signal`. Yields a function that waits for a signal.

    The waiting thread is woken by a byte from Python's C signal handler. A lock would not do: a
    signal that comes right before the wait, or that another thread receives, does not interrupt the
    wait, and Python calls `on_signal` only once the main thread runs.
    """
    has_come = False

    def note_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        on_signal()

    def wait() -> None:
        while not has_come:
            reader.recv(1)

    reader, writer = socket.socketpair()
    with reader, writer, _handlers_restored() as handled:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            for number in handled:
                signal.signal(number, note_signal)
            yield wait
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _handlers_restored() -> Generator[list[signal.Signals]]:
    """Yields the signals to handle. After the block, their handlers are those from before it."""
    before = {number: signal.getsignal(number) for number in handled_signals()}
    try:
        yield list(before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handled_signals() -> list[signal.Signals]:
    """The signals that stop this process: not SIGHUP if that was to be ignored, and none outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return []
    ignores_sighup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignores_sighup]


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Ignores a signal. SIG_IGN would be inherited by programs that are started."""
