"""Folding lanes in processes of this machine."""

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
from projections import child
from projections.child import Answer
from projections.definition import Projection
from projections.errors import FoldFailed, RebuildError
from projections.folding import LANES_AT_ONCE_MAX, fold_lanes
from projections.generations import Generation, Progress
from projections.rebuild import Folding

#: How many events a worker folds in one claim where that is all it has to fold: some seconds' work.
EVENTS_AT_ONCE = 1_000_000

#: Between two looks at the progress.
LOOK_S = 0.1

#: Fresh interpreters: a fork of a process with threads and connections would inherit their locks.
_SPAWN = multiprocessing.get_context("spawn")


def fold_in_processes(conninfo: str, *, workers: int, full_speed: bool = False) -> Folding:
    """Folds with `workers` processes, which leave the processors to whoever else wants them, and rest while others write
    unless they are to go on at `full_speed`.

    They end with their parent, whatever becomes of it.
    """

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        # Each claim reads the whole log once. One for each worker is soonest done, but a kill undoes claims: of a long log
        # there are two, which also share it out more evenly.
        claims = 1 if (await progress()).events <= workers * EVENTS_AT_ONCE else 2
        at_once = max(1, min(LANES_AT_ONCE_MAX, LANES // (claims * workers)))
        work = partial(fold_lanes, conninfo, projection, build, at_once=at_once, readers=workers, full_speed=full_speed)
        running = list[tuple[BaseProcess, Answer]]()
        try:
            for _ in range(workers):
                # One by one: where the machine has no room for one more, those before it are ended.
                running.append(start_folding(work))
            while alive := [process for process, _ in running if process.is_alive()]:
                await progress()
                await ended(alive, within_s=LOOK_S)
        except OSError as error:
            raise FoldFailed(build.name, f"a process could not be started: {told(error)}") from error
        finally:
            reasons = [end_folding(process, answer) for process, answer in running]
        now = await progress()
        # A process that was killed leaves its lane to the others; only lanes that nobody folded are a failure.
        if now.lanes_folded < now.lanes:
            raise FoldFailed(build.name, "; ".join(filter(None, reasons)) or "lanes are left")

    return fold


@contextmanager
def interrupts_blocked() -> Generator[None]:
    """Processes that are started within never hear a Ctrl-C, which a terminal sends to them too.

    It would break them off wherever they are, with a traceback each; whoever started them ends them.
    """
    # What the first process of all brings with it lets interrupts through again, right before that one is started.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_folding(work: Callable[[], int]) -> tuple[BaseProcess, Answer]:
    """Have `work` done by a process that gives way to others, and that goes with this one; `end_folding` is for both in
    the end. Raises `OSError` where the machine has no room for it."""
    answer, its_answer = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(
        target=child.do, args=(child.task_of(work, told), its_answer), name="hydracore-fold", daemon=True
    )
    with closing(its_answer):
        try:
            with interrupts_blocked():
                process.start()
        except BaseException:
            answer.close()
            raise
    return process, answer


def end_folding(process: BaseProcess, answer: Answer) -> str | None:
    """Have the process end, whatever it is about; why it has not done its work, `None` where it has."""
    with closing(answer):
        # One that is stopped hears nothing else.
        process.kill()
        process.join()
        return None if process.exitcode == 0 else _reason_of(process, answer)


async def ended(processes: Iterable[BaseProcess], *, within_s: float) -> None:
    """Wait until the first of `processes` has ended, or so long."""
    first, loop = asyncio.Event(), asyncio.get_running_loop()
    sentinels = [process.sentinel for process in processes]
    # Not a thread that waits for them: one would keep whoever is told to stop until they have ended.
    for sentinel in sentinels:
        loop.add_reader(sentinel, first.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await first.wait()
    finally:
        for sentinel in sentinels:
            loop.remove_reader(sentinel)


def told(error: Exception) -> str:
    """What it is told as. Errors that may quote what an event or a row says are told by their class: all but our own, those of the
    machine, and those of a connection, of which the server knows nothing."""
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


def _reason_of(process: BaseProcess, answer: Answer) -> str:
    try:
        return str(answer.recv()) if answer.poll() else f"a process ended with {process.exitcode}"
    except (EOFError, OSError):  # It was killed before it had said anything, or in the middle of it.
        return f"a process ended with {process.exitcode}"
