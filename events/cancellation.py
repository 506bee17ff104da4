"""Makes sure that a task which is cancelled stops, even if a library swallowed the cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def preserve_cancellation() -> Generator[None]:
    """Raise `CancelledError` at the end of the block if the task was cancelled in it, whatever the block itself did.

    Python 3.11's `asyncio.wait_for` loses a cancellation that arrives in the moment in which the wait ends; psycopg's pool waits for
    connections with it, and redis-py sends commands with it. The pool also takes a cancellation for a failure of the connection that it
    is checking. (psycopg's connections lose none: if the server refuses the cancelled statement, `AsyncConnection.wait` still raises
    the cancellation.) A task that works in a loop would go on for ever.
    """
    task = asyncio.current_task()
    assert task is not None, "only a task can be cancelled"
    # A task that cleans up after a cancellation may run: only a new cancellation counts.
    before = task.cancelling()
    try:
        yield
    except Exception:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
