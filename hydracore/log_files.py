"""Log files to which others append, kept from growing without a limit."""

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
#: Between two looks.
LOOK_S: Final = 5.0


async def keep_small(logs: Callable[[], Iterable[Path]], *, look_s: float = LOOK_S) -> None:
    """Look at them time and again, until cancelled. One that cannot be set aside, as on a full disk, stays as it is until it can."""
    while True:
        await asyncio.to_thread(_look, list(logs()))
        await asyncio.sleep(look_s)


def _look(logs: list[Path]) -> None:
    for log in logs:
        with suppress(OSError):
            set_aside(log)


def set_aside(log: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Empty a log that has grown beyond `bytes_max`, with what was in it in a file of its own, `.old`, in place of the last one.

    Whoever writes to it has it open to append, and goes on. Lines that come in the moment in between are lost. Raises `OSError`.
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
