"""Waits for the first of several tasks, and cancels the others; or for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*tasks: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    """Wait until one of `tasks` is done, and cancel the others. Returns those that ended by themselves, at least one.

    When this returns or is cancelled, all tasks are done, their cleanup included. It does not raise
    their errors: the caller looks at the tasks' results.
    """
    try:
        by_themselves, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # Waits for all of them, even if this is cancelled.
        await asyncio.gather(*tasks, return_exceptions=True)
    return by_themselves


async def run_until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends by itself or `event` is set. Returns whether `event` is set.

    When this returns, `work` is done: it was cancelled if necessary, and its cleanup awaited. An
    error of `work` is raised here, unless `event` is set.
    """
    working = asyncio.create_task(work)
    await first_of(working, asyncio.create_task(event.wait()))
    if event.is_set():
        return True
    working.result()
    return False


async def run_concurrently(*steps: Coroutine[Any, Any, None]) -> None:
    """Run all steps concurrently. When one fails, the others are cancelled and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
