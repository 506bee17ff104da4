"""Cancellations that are heard: whoever is told to stop stops, also where a library has taken it for something else."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def cancellation_heard() -> Generator[None]:
    """A block at whose end the task is cancelled if somebody asked for that meanwhile, whatever has become of it.

    Python 3.11's `asyncio.wait_for`, with which psycopg's pool waits for a connection and redis-py sends a command, forgets a
    cancellation that comes in the moment in which the wait is over, and the pool takes one for the failure of the connection that it is
    checking. (psycopg's connections lose none: where the server refuses the statement that is cancelled, `AsyncConnection.wait`
    raises the cancellation all the same.) A task that goes on in a loop would never hear of it again.
    """
    task = asyncio.current_task()
    assert task is not None, "only a task can be cancelled"
    # Whoever tidies up has been cancelled before, and may.
    before = task.cancelling()
    try:
        yield
    except Exception:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
