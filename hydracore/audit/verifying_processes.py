"""Lanes that are verified by several processes, which tell meanwhile how far they have come."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from ctypes import Array, c_int64
from multiprocessing import active_children, get_context
from multiprocessing.sharedctypes import RawArray

import psycopg
from psycopg import Connection, IsolationLevel

from events.pacing import Pace
from events.verified_lane import LaneReport
from hydracore.audit.verifying_lanes import Job, verify_some
from hydracore.garbage import look_seldom
from projections.child import NICE, end_with_parent
from projections.processes import LOOK_S, interrupts_blocked

How = tuple[str, int | None]
"""How to connect: see `connected`."""

#: How many events were looked at of each part; each place is written by the one process that has the part.
_Done = Array[c_int64]

_done: _Done | None = None


@contextmanager
def connected(conninfo: str, prepare_threshold: int | None) -> Generator[Connection]:
    """A connection whose transactions each see one moment, and change nothing."""
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=prepare_threshold) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection


def verify_in_processes(
    workers: int, how: How, parts: Sequence[list[Job]], pace: Pace, progress: Callable[[int], None]
) -> Iterator[tuple[list[LaneReport], float]]:
    """The reports of each part, and how long its process rested; `pace`: one that has not begun, of which each has a copy.

    Raises psycopg's errors, and `BrokenProcessPool` where a process was killed.
    """
    done: _Done = RawArray(c_int64, len(parts))
    others = active_children()
    # Not forked: a child with this one's threads and locks half copied could hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare, initargs=(done,))
    try:
        with interrupts_blocked():
            verified = [pool.submit(_verify, how, number, jobs, pace) for number, jobs in enumerate(parts)]
        _watch(verified, done, progress)
        for part in verified:
            yield part.result()
    except BaseException:
        # Where one was killed while another was being started, the pool would wait for that one for ever.
        for child in active_children():
            if child not in others:
                child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _watch(
    verified: Sequence[Future[tuple[list[LaneReport], float]]], done: _Done, progress: Callable[[int], None]
) -> None:
    """Tell how far they have come, until all have ended or one has failed."""
    told, ends = 0, False
    while not ends:
        ended, left = wait(verified, timeout=LOOK_S, return_when=FIRST_EXCEPTION)
        ends = not left or any(part.exception() is not None for part in ended)
        now = sum(done)
        progress(now - told)
        told = now


def _prepare(done: _Done) -> None:
    """It dies of an interrupt in silence, and in the middle of a lane: nobody waits for its report any more. So it does with its parent."""
    global _done  # noqa: PLW0603 - a process is one worker
    _done = done
    end_with_parent()
    os.nice(NICE)
    look_seldom()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _verify(how: How, number: int, jobs: list[Job], pace: Pace) -> tuple[list[LaneReport], float]:
    done = _done
    assert done is not None, "it was prepared"

    def progress(events: int) -> None:
        done[number] += events

    with connected(*how) as connection:
        return verify_some(connection, jobs, pace, progress), pace.rested_s
