"""Verifies lanes in several processes, which report their progress meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess

import psycopg
from psycopg import IsolationLevel

from events.lane_verification import LaneReport
from events.pacing import Pace
from hydracore.audit.verifying_lanes import Job, verify_lanes
from hydracore.gc_tuning import collect_less_often
from projections.child_process import PipeEnd, prepare_child
from projections.processes import POLL_S, interrupts_blocked

ConnectArguments = tuple[str, int | None]
"""The arguments of `read_only_connection`."""

PartResult = tuple[list[LaneReport], float]
"""The reports of a part, and how long its process rested."""

#: In a verifying process: sends the number of events that were read since the last report.
_progress_sender: PipeEnd | None = None


@contextmanager
def read_only_connection(conninfo: str, prepare_threshold: int | None) -> Generator[psycopg.Connection]:
    """A connection whose transactions are read-only and each see one snapshot."""
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=prepare_threshold) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection


def verify_in_processes(
    workers: int,
    connect_arguments: ConnectArguments,
    parts: Sequence[list[Job]],
    pace: Pace,
    progress: Callable[[int], None],
) -> Iterator[PartResult]:
    """Verify each part in a process. Yields the results in order.

    `pace`: one that has not begun; each process gets a copy.

    Raises psycopg's errors, and `BrokenProcessPool` where a process was killed.
    """
    earlier_children = active_children()
    # Not forked: a child with half a copy of our threads and locks could hang.
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_prepare, initargs=(sender,))
    try:
        with interrupts_blocked():
            futures = [pool.submit(_verify, connect_arguments, jobs, pace) for jobs in parts]
        _watch(futures, [child for child in active_children() if child not in earlier_children], receiver, progress)
        for part in futures:
            yield part.result()
    except BaseException:
        # Where one process was killed while another was being started, the pool would wait for the other for ever.
        for child in active_children():
            if child not in earlier_children:
                child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        receiver.close()
        sender.close()


def _watch(
    futures: Sequence[Future[PartResult]],
    processes: Sequence[BaseProcess],
    receiver: PipeEnd,
    progress: Callable[[int], None],
) -> None:
    """Pass progress on until all processes have ended.

    Raises the error of the first one that fails, without waiting for the others.
    """
    pending = set(futures)
    while pending:
        ended, pending = wait(pending, timeout=POLL_S, return_when=FIRST_EXCEPTION)
        while receiver.poll():
            progress(receiver.recv())
        for part in ended:
            part.result()
        # The pool may not notice that before another process answers: it watches the processes that it
        # had when it looked last.
        if pending and any(process.exitcode is not None for process in processes):
            raise BrokenProcessPool("A verifying process was killed")


def _prepare(sender: PipeEnd) -> None:
    """Prepare a process. An interrupt or its parent's end ends it at once, silently: nobody needs its report then."""
    global _progress_sender  # noqa: PLW0603 - a process is one worker
    _progress_sender = sender
    prepare_child()
    collect_less_often()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _verify(connect_arguments: ConnectArguments, jobs: list[Job], pace: Pace) -> PartResult:
    sender = _progress_sender
    assert sender is not None, "`_prepare` has set it"
    with read_only_connection(*connect_arguments) as connection:
        return verify_lanes(connection, jobs, pace, sender.send), pace.rested_s
