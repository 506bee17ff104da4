"""Fold lanes in processes on this machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

import psycopg

from events.errors import EventsError
from events.ids import LANES
from projections import child_process
from projections.child_process import PipeEnd
from projections.definition import Projection
from projections.errors import FoldFailed, RebuildError
from projections.folding import LANES_AT_ONCE_MAX, fold_lanes
from projections.generations import Generation, Progress
from projections.rebuild import Folding

#: The most events per process that are folded in one claim each: some seconds' work. If there are more, each process
#: makes two claims.
EVENTS_AT_ONCE = 1_000_000

#: The time between two polls of the progress, in seconds.
POLL_S = 0.1

#: New interpreters: a fork of a process with threads and connections would inherit their locks.
_SPAWN = multiprocessing.get_context("spawn")


def fold_in_processes(conninfo: str, *, workers: int, full_speed: bool = False) -> Folding:
    """A `Folding` with `workers` processes at low priority, which rest while others write, unless `full_speed`.

    The processes end with their parent, even if that is killed.
    """

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        # Each claim reads the whole log once. One claim per process is the fastest, but a process that is killed loses
        # its whole claim. So a long log has two per process, which also distributes the work more evenly.
        claims = 1 if (await progress()).events <= workers * EVENTS_AT_ONCE else 2
        at_once = max(1, min(LANES_AT_ONCE_MAX, LANES // (claims * workers)))
        work = partial(fold_lanes, conninfo, projection, build, at_once=at_once, readers=workers, full_speed=full_speed)
        running = list[tuple[BaseProcess, PipeEnd]]()
        try:
            for _ in range(workers):
                # One by one: if the machine cannot start another, those before it are known, and are ended.
                running.append(start_folding(work))
            while alive := [process for process, _ in running if process.is_alive()]:
                await progress()
                await ended(alive, within_s=POLL_S)
        except OSError as error:
            raise FoldFailed(build.name, f"could not start a process: {describe(error)}") from error
        finally:
            reasons = [end_folding(process, answer) for process, answer in running]
        now = await progress()
        # The other processes fold the lanes of one that was killed. It is a failure only if lanes are left.
        if now.lanes_folded < now.lanes:
            raise FoldFailed(build.name, "; ".join(filter(None, reasons)) or "lanes are left")

    return fold


@contextmanager
def interrupts_blocked() -> Generator[None]:
    """Block SIGINT in processes that are started within the context: a terminal sends it to them too.

    They would be interrupted anywhere, each with a traceback. Whoever started them ends them.
    """
    # The first process starts the resource tracker, which unblocks SIGINT again. So the tracker is started before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_folding(work: Callable[[], int]) -> tuple[BaseProcess, PipeEnd]:
    """Start a process for `work`, at low priority, which ends with this one. Both results are for `end_folding`.

    Raises `OSError` where the machine cannot start another process.
    """
    pipe, child_end = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(
        target=child_process.run_task,
        args=(child_process.pickle_task(work, describe), child_end),
        name="hydracore-fold",
        daemon=True,
    )
    with closing(child_end):
        try:
            with interrupts_blocked():
                process.start()
        except BaseException:
            pipe.close()
            raise
    return process, pipe


def end_folding(process: BaseProcess, pipe: PipeEnd) -> str | None:
    """Kill the process if it still runs. Returns why it has not done its work, None where it has."""
    with closing(pipe):
        # Not SIGTERM: a stopped process would not handle it.
        process.kill()
        process.join()
        return None if process.exitcode == 0 else _reason_of(process, pipe)


async def ended(processes: Iterable[BaseProcess], *, within_s: float) -> None:
    """Wait until the first of `processes` has ended, or until `within_s` has passed."""
    first, loop = asyncio.Event(), asyncio.get_running_loop()
    sentinels = [process.sentinel for process in processes]
    # Not in a thread: a command that is interrupted could not stop before the thread has ended.
    for sentinel in sentinels:
        loop.add_reader(sentinel, first.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await first.wait()
    finally:
        for sentinel in sentinels:
            loop.remove_reader(sentinel)


def describe(error: Exception) -> str:
    """`error` in words that cannot contain what an event or a row says.

    With its text: this project's errors, those of the operating system, and those of a connection without an answer of
    the server. Any other error is named by its class, a database error by its SQLSTATE too.
    """
    name = type(error).__name__
    if isinstance(error, EventsError | RebuildError):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}"
    if not isinstance(error, psycopg.Error):
        return name
    if error.sqlstate:
        return f"{name} ({error.sqlstate})"
    return f"{name}: {' '.join(str(error).split())}" if isinstance(error, psycopg.OperationalError) else name


def _reason_of(process: BaseProcess, pipe: PipeEnd) -> str:
    try:
        return str(pipe.recv()) if pipe.poll() else f"a process ended with exit code {process.exitcode}"
    except (EOFError, OSError):  # It was killed before it had sent a reason, or while it sent one.
        return f"a process ended with exit code {process.exitcode}"
