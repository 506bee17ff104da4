"""A process that works for another: it gives way to others, ends with the one that has started it, and says why it failed.

Only what is light is imported here. What the work needs comes with it, once nobody looks for garbage any more: that would take a
third of the time in which it is imported.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any, Protocol

#: How much it gives way to others: where they want all there is, it gets a tenth of their share (see `nice`).
NICE = 10


class Answer(Protocol):
    """An end of a pipe."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...
    def poll(self) -> bool: ...
    def close(self) -> None: ...


def task_of(work: Callable[[], object], told: Callable[[Exception], str]) -> bytes:
    """What `do` takes: `work`, and the words that an error of it is told in."""
    return pickle.dumps((work, told))


def do(task: bytes, answer: Answer) -> None:
    end_with_parent()
    os.nice(NICE)
    # A fold makes millions of objects and no cycles: looking for those would take a third of its time.
    gc.disable()
    work, told = pickle.loads(task)  # noqa: S301 - from whoever has started this process
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the parent tells of it
        answer.send(told(error))
        raise SystemExit(1) from None
    # All is where it belongs. Taking apart what was imported and held, piece by piece, would only keep others waiting.
    os._exit(0)


def end_with_parent() -> None:
    """Have this process end as soon as the one that has started it does, whatever either is about.

    One that is killed ends nobody: its children would go on with what nobody knows of any more, or wait for it for ever.
    """
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    os._exit(1)
