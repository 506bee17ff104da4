"""A child process for background work: it runs at low priority, ends with its parent, and reports why it failed.

Only light modules are imported here. Unpickling the task imports the modules that the work needs, once the garbage
collector is off, which would take a third of the import time.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any, Protocol

#: The process's niceness. Where others want all processors, it gets a tenth of their share.
NICE = 10


class PipeEnd(Protocol):
    """One end of a pipe."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self) -> bool: ...
    def close(self) -> None: ...


def pickle_task(work: Callable[[], object], describe: Callable[[Exception], str]) -> bytes:
    """The argument of `run_task`: `work`, and `describe`, which puts an exception of it into words, pickled."""
    return pickle.dumps((work, describe))


def run_task(task: bytes, pipe: PipeEnd) -> None:
    prepare_child()
    # A fold creates millions of objects but no cycles. Searching for cycles would take a third of its time.
    gc.disable()
    work, describe = pickle.loads(task)  # noqa: S301 - from the process that has started this one
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the parent reports it
        pipe.send(describe(error))
        raise SystemExit(1) from None
    # The work is committed. A regular exit would only spend time on freeing modules and objects.
    os._exit(0)


def prepare_child() -> None:
    """Give this process its low priority, end it as soon as its parent ends, and keep psycopg's warnings to itself.

    A parent that is killed cannot end its children: they would go on with work that nobody waits for, or wait for ever.
    """
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    os.nice(NICE)
    # This process configures no logging, so that psycopg's warnings about a broken connection would be printed as they
    # are, before the reason that the parent prints or logs.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    os._exit(1)
