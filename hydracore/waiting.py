"""Waiting for the first of several things, without leaving the others behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*tasks: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    """Wait until the first of `tasks` is over; those that were over by themselves, which are several where they end at once.

    All are over when this returns or is cancelled: the others are cancelled, and their cleanup awaited. What they come to,
    errors too, is theirs to tell.
    """
    try:
        by_themselves, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # It is not over before all of them are, also where somebody cancels it.
        await asyncio.gather(*tasks, return_exceptions=True)
    return by_themselves


async def work_until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends by itself or `event` is set. True when the event came.

    `work` is over when this returns: cancelled if need be, its cleanup awaited. What it raised by itself is raised here,
    unless the event came as well.
    """
    working = asyncio.create_task(work)
    await first_of(working, asyncio.create_task(event.wait()))
    if event.is_set():
        return True
    working.result()
    return False
