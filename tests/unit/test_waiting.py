"""Waiting for the first of several tasks: which one wins, what is raised, and that no task is left running."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from hydracore.waiting import first_of, run_until


class Steps:
    """Coroutines that note when their cleanup has ended."""

    def __init__(self) -> None:
        self.cleaned_up: list[str] = []
        self.begun = asyncio.Event()

    async def endless(self, name: str) -> NoReturn:
        try:
            self.begun.set()
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.cleaned_up.append(name)


@pytest.fixture
def steps() -> Steps:
    return Steps()


async def fail() -> NoReturn:
    raise LookupError("x")


async def seven() -> int:
    return 7


def no_task_is_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


# --- the first of several --------------------------------------------------------------------------------------------


async def test_the_other_tasks_are_cancelled_and_their_cleanup_is_awaited(steps: Steps) -> None:
    winner, loser = asyncio.create_task(seven()), asyncio.create_task(steps.endless("loser"))

    assert await first_of(winner, loser) == {winner}

    assert (winner.result(), loser.cancelled(), steps.cleaned_up) == (7, True, ["loser"])
    assert no_task_is_left()


async def test_tasks_that_end_at_the_same_time_are_all_returned() -> None:
    one, other = asyncio.create_task(seven()), asyncio.create_task(fail())

    assert await first_of(one, other) == {one, other}

    assert one.result() == 7
    with pytest.raises(LookupError):
        other.result()


async def test_a_cancelled_task_that_returns_a_result_does_not_count_as_first() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"
        raise AssertionError

    winner, loser = asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(stubborn())

    assert await first_of(winner, loser) == {winner}
    assert loser.result() == "all the same"


async def test_a_first_task_that_fails_ends_the_wait_and_keeps_its_error(steps: Steps) -> None:
    failing, loser = asyncio.create_task(fail()), asyncio.create_task(steps.endless("loser"))

    assert await first_of(loser, failing) == {failing}

    assert isinstance(failing.exception(), LookupError)
    assert steps.cleaned_up == ["loser"]


async def test_a_cancelled_wait_leaves_no_task_running(steps: Steps) -> None:
    async def wait() -> None:
        await first_of(*(asyncio.create_task(steps.endless(name)) for name in ("one", "other")))

    waiting = asyncio.create_task(wait())
    await steps.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert sorted(steps.cleaned_up) == ["one", "other"]
    assert no_task_is_left()


async def test_a_wait_that_is_cancelled_during_cleanup_leaves_no_task_running() -> None:
    cleaning_up = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning_up.set()
            await asyncio.Event().wait()

    waiting = asyncio.create_task(first_of(*map(asyncio.create_task, (asyncio.sleep(0), slow_to_end()))))
    await cleaning_up.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert no_task_is_left()


# --- work until an event ---------------------------------------------------------------------------------------------


async def test_the_event_cancels_the_work_whose_cleanup_is_awaited(steps: Steps) -> None:
    assert await run_until(steps.begun, steps.endless("work"))

    assert steps.cleaned_up == ["work"]
    assert no_task_is_left()


async def test_an_error_of_the_work_is_raised_unless_the_event_came() -> None:
    came = asyncio.Event()

    async def fail_as_it_comes() -> None:
        came.set()
        raise LookupError("x")

    with pytest.raises(LookupError):
        await run_until(asyncio.Event(), fail())
    assert await run_until(came, fail_as_it_comes())
    assert not await run_until(asyncio.Event(), asyncio.sleep(0))
    assert no_task_is_left()


async def test_cancelling_the_wait_cancels_the_work_and_awaits_its_cleanup(steps: Steps) -> None:
    waiting = asyncio.create_task(run_until(asyncio.Event(), steps.endless("work")))
    await steps.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert steps.cleaned_up == ["work"]
    assert no_task_is_left()
