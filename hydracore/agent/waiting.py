"""Waiting for one of two things, without leaving the other behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def work_until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends by itself or `event` is set. True when the event came.

    `work` is over when this returns: cancelled if need be, its cleanup awaited. What it raised by itself is raised here,
    unless the event came as well.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        came = event.is_set()
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)
    if not came:
        working.result()
    return came
