"""Reads that share a statement: who shares, who does not, and whose trouble it is."""

import asyncio

import pytest

from projections.coalesce import BATCH_MAX, FETCHES_MAX, Coalescer
from tests.waiting import until


class Table:
    """Something to fetch from, that can be held up and can fail."""

    def __init__(self) -> None:
        self.rows = {number: f"row {number}" for number in range(1000)}
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def fetch(self, keys: list[int]) -> dict[int, str]:
        self.batches.append(keys)
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return found


async def test_what_is_asked_for_together_is_fetched_together() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)

    answers = await asyncio.gather(*(reads.get(key) for key in (1, 2, 2, 5000)))

    assert answers == ["row 1", "row 2", "row 2", None]
    assert table.batches == [[1, 2, 5000]]


async def test_whoever_asks_after_a_fetch_has_begun_gets_a_later_one() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    early = asyncio.create_task(reads.get(1))
    await until(lambda: table.batches)

    table.rows[1] = "written since"
    late = asyncio.create_task(reads.get(1))
    await until(lambda: len(table.batches) == 2)
    table.go.set()

    assert (await early, await late) == ("row 1", "written since")


async def test_batches_and_fetches_are_bounded() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    asked = [asyncio.create_task(reads.get(key)) for key in range(BATCH_MAX * (FETCHES_MAX + 2))]
    await until(lambda: len(table.batches) == FETCHES_MAX)
    under_way = len(table.batches)
    table.go.set()

    answers = await asyncio.gather(*asked)

    assert under_way <= FETCHES_MAX
    assert max(map(len, table.batches)) <= BATCH_MAX
    assert answers == [f"row {key}" for key in range(len(asked))]


async def test_whoever_asks_in_the_turn_in_which_all_fetches_end_gets_one_of_their_own() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    early: list[asyncio.Task[str | None]] = []
    for key in range(FETCHES_MAX):
        early.append(asyncio.create_task(reads.get(key)))
        await until(lambda: len(table.batches) == len(early))

    async def ask_once_they_end() -> str | None:
        await table.go.wait()
        return await reads.get(FETCHES_MAX)

    late = asyncio.create_task(ask_once_they_end())
    # It waits behind them, and so has its turn right behind theirs.
    await asyncio.sleep(0)
    table.go.set()

    assert await asyncio.gather(*early, late) == [f"row {key}" for key in range(FETCHES_MAX + 1)]
    assert len(table.batches) == FETCHES_MAX + 1


async def test_an_error_is_everybodys_who_shared_the_fetch_and_nobody_elses() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.error = OSError("away")

    failed = await asyncio.gather(reads.get(1), reads.get(2), return_exceptions=True)
    table.error = None

    assert [type(each) for each in failed] == [OSError, OSError]
    assert await reads.get(1) == "row 1"


async def test_one_who_gives_up_does_not_disturb_the_others() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    gone, stays = asyncio.create_task(reads.get(1)), asyncio.create_task(reads.get(1))
    await until(lambda: table.batches)

    gone.cancel()
    table.go.set()

    assert await stays == "row 1"
    with pytest.raises(asyncio.CancelledError):
        await gone
