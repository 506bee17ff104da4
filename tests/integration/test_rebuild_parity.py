"""Nothing is swapped that was not compared: what drifts between the comparison of all rows and the swap is found too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from hydracore.signals import run_to_its_end
from projections import generations
from projections.definition import Projection
from projections.follower import Follower
from projections.instance import InstanceProjection
from projections.rebuild import Report, Steps, rebuild
from projections.usage_daily import UsageDaily
from tests import lives
from tests.next_release import ActivityV2
from tests.rebuilding import compared, fold_here, follow_all, rebuilt, write_lives
from tests.requests_to_log import open_store, origin


async def rebuilt_while(
    database_url: str, projection: Projection, work: Callable[[], Awaitable[None]], *, accept_drift: bool = False
) -> Report:
    """A rebuild with `work` done after the comparison of all rows, before the first step towards the swap."""

    async def do() -> None:
        await work()

    def phase(text: str) -> None:
        if text == "swapping":
            with ThreadPoolExecutor(1) as aside:
                aside.submit(run_to_its_end, do()).result()

    steps = Steps(phase=phase, folded=lambda _: None)
    return await rebuild(
        database_url, projection, folding=fold_here(database_url), steps=steps, accept_drift=accept_drift
    )


@pytest.mark.parametrize("accept_drift", [False, True])
@pytest.mark.parametrize("unverified_max", [1, 1_000])
async def test_rows_that_drift_after_the_comparison_abort_the_swap_unless_that_is_accepted_however_much_is_written(
    database_url: str, monkeypatch: pytest.MonkeyPatch, *, unverified_max: int, accept_drift: bool
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

    report = await rebuilt_while(database_url, InstanceProjection(), write_and_edit, accept_drift=accept_drift)

    assert (report.swapped, report.drifted) == (accept_drift, 1)
    assert (await compared(database_url, InstanceProjection())).drifted == (0 if accept_drift else 1)
    assert (report.drift[0].key["id"], report.drift[0].live) == (str(ids[1]), {"hostname": "edited"})


async def test_a_lane_that_the_live_follower_takes_on_after_the_comparison_is_compared_again(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_lives(store, count=4)
        await follow_all(pool)
        await store.execute(ids[2], lives.usage(2), origin("agent:x"))

    async def follow_and_edit() -> None:
        async with open_store(database_url) as (_, pool):
            await follow_all(pool)
            async with pool.connection() as connection:
                await connection.execute("UPDATE usage_daily SET requests = 99 WHERE instance_id = %s", (ids[2],))

    report = await rebuilt_while(database_url, UsageDaily(), follow_and_edit)

    assert (report.stopped_s, report.drifted) == (None, 1)
    assert report.drift[0].live == {"requests": 99}
    assert (await rebuilt(database_url, UsageDaily())).stopped_s is None


async def test_all_rows_are_compared_of_a_projection_that_nobody_follows_any_more(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=6)
        await follow_all(pool)
        rows = (await owner_conn.execute("UPDATE activity SET commands = 777")).rowcount
        # Every process runs the next release, whose followers wait for its table.
        await write_lives(store, count=12, start=6)

        dry = await compared(database_url, ActivityV2())
        refused = await rebuilt(database_url, ActivityV2())

        assert (dry.rows_compared, dry.drifted) == (refused.rows_compared, refused.drifted) == (rows, rows)
        assert refused.stopped_s is None
        accepted = await rebuilt(database_url, ActivityV2(), accept_drift=True)
        assert (accepted.resumed, accepted.stopped_s is not None) == (True, True)
        # What nobody had followed is followed by the code that was waiting.
        assert await Follower(pool, ActivityV2()).catch_up() > 0
        again = await compared(database_url, ActivityV2())
        assert again.rows_compared > rows
        assert again.drifted == 0


async def test_a_build_that_knows_more_than_the_live_tables_is_begun_anew(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=6)
        await follow_all(pool)
        await owner_conn.execute("UPDATE activity SET commands = 777")
        await write_lives(store, count=6, start=6)
    build = await generations.begin(owner_conn, ActivityV2())
    # As an earlier release began it.
    heads = "UPDATE projection_lane l SET target = h.head FROM lane_head h WHERE h.lane = l.lane AND h.head > 0"
    await owner_conn.execute(heads)

    report = await rebuilt(database_url, ActivityV2())

    assert (report.resumed, report.generation, report.stopped_s) == (False, build.number, None)
    assert report.drifted == report.rows_compared > 0
