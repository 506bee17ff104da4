"""The lock of a stream: whatever becomes of its holder, the next task gets it."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from events.stream_locks import StreamLocks

STREAM = UUID(int=1)


class _Trouble(Exception):
    pass


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["fails", "is cancelled"])
async def test_a_task_that_fails_or_is_cancelled_with_the_lock_leaves_it_to_the_next(*, is_cancelled: bool) -> None:
    locks, trouble = StreamLocks(), asyncio.Event()

    async def fail() -> None:
        async with locks.hold(STREAM):
            await trouble.wait()
            raise _Trouble

    async def change() -> str:
        async with locks.hold(STREAM):
            return "changed"

    first, second = asyncio.create_task(fail()), asyncio.create_task(change())
    await asyncio.sleep(0)
    if is_cancelled:
        first.cancel()
    else:
        trouble.set()

    failed, answer = await asyncio.gather(first, second, return_exceptions=True)

    assert isinstance(failed, asyncio.CancelledError if is_cancelled else _Trouble)
    assert answer == "changed"
