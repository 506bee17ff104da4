"""Nothing is swapped that was not compared: what drifts between the comparison of all rows and the swap is found too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from projections.instance import InstanceProjection
from projections.rebuild import Report, Steps, rebuild
from projections.usage_daily import UsageDaily
from tests import lives
from tests.rebuilding import fold_here, follow_all, rebuilt, write_lives
from tests.requests_to_log import open_store, origin


async def rebuilt_while(database_url: str, projection, work: Callable[[], Awaitable[None]]) -> Report:  # noqa: ANN001
    """A rebuild with `work` done after the comparison of all rows, before the first step towards the swap."""

    async def do() -> None:
        await work()

    def phase(text: str) -> None:
        if text == "swapping":
            with ThreadPoolExecutor(1) as aside:
                aside.submit(asyncio.run, do()).result()

    steps = Steps(phase=phase, folded=lambda _: None)
    return await rebuild(database_url, projection, folding=fold_here(database_url), steps=steps)


@pytest.mark.parametrize("unverified_max", [1, 1_000])
async def test_rows_that_drift_after_the_comparison_abort_the_swap_however_much_is_written(
    database_url: str, monkeypatch: pytest.MonkeyPatch, unverified_max: int
) -> None:
    monkeypatch.setattr("projections.approach.UNVERIFIED_MAX", unverified_max)
    async with open_store(database_url) as (store, _):
        ids = await write_lives(store, count=4)

    async def write_and_edit() -> None:
        async with open_store(database_url) as (other, pool):
            for instance_id in ids[:3]:
                await other.execute(instance_id, lives.configure(agent_name="Eve"), origin())
            async with pool.connection() as connection:
                await connection.execute("UPDATE instance SET hostname = 'edited' WHERE id = %s", (ids[1],))

    report = await rebuilt_while(database_url, InstanceProjection(), write_and_edit)

    assert (report.stopped_s, report.drifted) == (None, 1)
    assert (report.drift[0].key["id"], report.drift[0].live) == (str(ids[1]), {"hostname": "edited"})


async def test_a_lane_that_the_live_follower_reaches_after_the_comparison_is_compared_then(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_lives(store, count=4)
        await follow_all(pool)
        # The build will know of this when it is compared, and the live tables not yet.
        await store.execute(ids[2], lives.usage(2), origin("agent:x"))
    edit = "UPDATE usage_daily SET requests = 99 WHERE instance_id = %s"
    assert (await owner_conn.execute(edit, (ids[2],))).rowcount == 1

    async def follow() -> None:
        async with open_store(database_url) as (_, pool):
            await follow_all(pool)

    report = await rebuilt_while(database_url, UsageDaily(), follow)

    assert (report.stopped_s, report.drifted) == (None, 1)
    assert report.drift[0].live == {"requests": 100}
    assert (await rebuilt(database_url, UsageDaily())).stopped_s is None
