"""Bounds the size of log files that other processes append to."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: A log file larger than this is rotated.
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
#: Seconds between two checks.
CHECK_INTERVAL_S: Final = 5.0


async def rotate_periodically(logs: Callable[[], Iterable[Path]], *, interval_s: float = CHECK_INTERVAL_S) -> None:
    """Rotate each log that is too large, every `interval_s`, until cancelled.

    A log that cannot be rotated, for example because the disk is full, stays as it is and is tried again.
    """
    while True:
        await asyncio.to_thread(_rotate_all, list(logs()))
        await asyncio.sleep(interval_s)


def _rotate_all(logs: list[Path]) -> None:
    for log in logs:
        with suppress(OSError):
            rotate(log)


def rotate(log: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
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
