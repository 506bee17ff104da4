"""Bounds the size of log files that other processes append to."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: A log that has grown beyond this is set aside.
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
#: Seconds between two looks.
LOOK_S: Final = 5.0


async def keep_small(logs: Callable[[], Iterable[Path]], *, look_s: float = LOOK_S) -> None:
    """Set aside each log that has grown too large, every `look_s`, until cancelled.

    A log that cannot be set aside, as on a full disk, stays as it is and is tried again.
    """
    while True:
        await asyncio.to_thread(_look, list(logs()))
        await asyncio.sleep(look_s)


def _look(logs: list[Path]) -> None:
    for log in logs:
        with suppress(OSError):
            set_aside(log)


def set_aside(log: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
    """If a log has grown beyond `bytes_max`, copy it to a file with the suffix `.old`, which is replaced, and empty it.

    Its writers must have it open to append, and go on. Lines that come between copying and emptying
    are lost. Raises `OSError`.
    """
    if log.stat().st_size <= bytes_max:
        return
    old = log.with_name(f"{log.name}.old")
    draft = log.with_name(f"{log.name}.old.new")
    try:
        shutil.copyfile(log, draft)
        draft.replace(old)
    finally:
        # A disk that is too full for a copy must not be left fuller.
        draft.unlink(missing_ok=True)
    os.truncate(log, 0)
