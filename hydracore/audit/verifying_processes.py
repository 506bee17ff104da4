"""Verifies lanes in several processes, which report their progress meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess

import psycopg
from psycopg import IsolationLevel

from events.pacing import Pace
from events.verified_lane import LaneReport
from hydracore.audit.verifying_lanes import Job, verify_some
from hydracore.gc_tuning import collect_less_often
from projections.child import NICE, Answer, end_with_parent
from projections.processes import LOOK_S, interrupts_blocked

How = tuple[str, int | None]
"""The arguments of `connected`."""

Verified = tuple[list[LaneReport], float]
"""The reports of a part, and how long its process rested."""

#: In a process that verifies: takes the number of events that were read since the last report.
_told: Answer | None = None


@contextmanager
def connected(conninfo: str, prepare_threshold: int | None) -> Generator[psycopg.Connection]:
    """A connection whose transactions are read-only and each see one snapshot."""
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=prepare_threshold) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection


def verify_in_processes(
    workers: int, how: How, parts: Sequence[list[Job]], pace: Pace, progress: Callable[[int], None]
) -> Iterator[Verified]:
    """Verify each part in a process. Yields the results in order.

    `pace`: one that has not begun; each process gets a copy.

    Raises psycopg's errors, and `BrokenProcessPool` where a process was killed.
    """
    others = active_children()
    # Not forked: a child with half a copy of our threads and locks could hang.
    spawn = get_context("spawn")
    heard, told = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_prepare, initargs=(told,))
    try:
        with interrupts_blocked():
            verified = [pool.submit(_verify, how, jobs, pace) for jobs in parts]
        _watch(verified, [child for child in active_children() if child not in others], heard, progress)
        for part in verified:
            yield part.result()
    except BaseException:
        # Where one process was killed while another was being started, the pool would wait for the other for ever.
        for child in active_children():
            if child not in others:
                child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        heard.close()
        told.close()


def _watch(
    verified: Sequence[Future[Verified]],
    processes: Sequence[BaseProcess],
    heard: Answer,
    progress: Callable[[int], None],
) -> None:
    """Pass progress on until all have ended.

    Raises the error of the first that fails, without waiting for the others.
    """
    left = set(verified)
    while left:
        ended, left = wait(left, timeout=LOOK_S, return_when=FIRST_EXCEPTION)
        while heard.poll():
            progress(heard.recv())
        for part in ended:
            part.result()
        # The pool may not notice that before another process answers: it watches the processes that it
        # had when it looked last.
        if left and any(process.exitcode is not None for process in processes):
            raise BrokenProcessPool("A verifying process was killed")


def _prepare(told: Answer) -> None:
    """Prepare a process. An interrupt or its parent's end ends it at once, silently: nobody needs its report then."""
    global _told  # noqa: PLW0603 - a process is one worker
    _told = told
    end_with_parent()
    os.nice(NICE)
    collect_less_often()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _verify(how: How, jobs: list[Job], pace: Pace) -> Verified:
    told = _told
    assert told is not None, "it was prepared"
    with connected(*how) as connection:
        return verify_some(connection, jobs, pace, told.send), pace.rested_s
