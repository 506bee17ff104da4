"""Reads that share a statement: which reads share it, which do not, and which fail with it."""

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


async def test_concurrent_reads_share_one_fetch() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)

    answers = await asyncio.gather(*(reads.get(key) for key in (1, 2, 2, 5000)))

    assert answers == ["row 1", "row 2", "row 2", None]
    assert table.batches == [[1, 2, 5000]]


async def test_a_read_made_after_a_fetch_has_begun_is_answered_by_a_later_fetch() -> None:
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


async def test_the_size_of_a_batch_and_the_number_of_concurrent_fetches_are_bounded() -> None:
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


async def test_a_read_made_in_the_event_loop_turn_in_which_all_fetches_end_gets_its_own_fetch() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    early: list[asyncio.Task[str | None]] = []
    for key in range(FETCHES_MAX):
        early.append(asyncio.create_task(reads.get(key)))
        await until(lambda: len(table.batches) == len(early))

    async def read_once_the_fetches_end() -> str | None:
        await table.go.wait()
        return await reads.get(FETCHES_MAX)

    late = asyncio.create_task(read_once_the_fetches_end())
    # It waits for the same event after the fetches, so its turn comes right after theirs.
    await asyncio.sleep(0)
    table.go.set()

    assert await asyncio.gather(*early, late) == [f"row {key}" for key in range(FETCHES_MAX + 1)]
    assert len(table.batches) == FETCHES_MAX + 1


async def test_a_failed_fetch_fails_all_reads_that_shared_it_and_no_later_read() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.error = OSError("away")

    failed = await asyncio.gather(reads.get(1), reads.get(2), return_exceptions=True)
    table.error = None

    assert [type(each) for each in failed] == [OSError, OSError]
    assert await reads.get(1) == "row 1"


async def test_a_cancelled_read_does_not_disturb_another_read_of_the_same_fetch() -> None:
    table = Table()
    reads: Coalescer[int, str] = Coalescer(table.fetch)
    table.go.clear()
    cancelled, other = asyncio.create_task(reads.get(1)), asyncio.create_task(reads.get(1))
    await until(lambda: table.batches)

    cancelled.cancel()
    table.go.set()

    assert await other == "row 1"
    with pytest.raises(asyncio.CancelledError):
        await cancelled
