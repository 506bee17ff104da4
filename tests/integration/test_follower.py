"""A followed projection has exact sums, and processes each event once, however many followers share the work."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from msgspec.structs import replace
from psycopg import sql

from hydracore.db.pool import open_pool
from projections.activity import Activity
from projections.fleet import Fleet
from projections.follower import Follower
from projections.usage_daily import COST_USD_MAX, TOKENS_MAX, UsageDaily
from projections.usage_queries import spent, usage_report
from tests.rebuilding import dry_run_here, write_instances
from tests.store_commands import create_instance, open_store
from tests.usage_recorded import LAST_DAY, lane_backlogs, record_usage, usage_entry


async def test_usage_is_summed_by_day_and_days_without_usage_are_included(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await create_instance(store), uuid4()
        await record_usage(
            store, instance_id, ledger_id, 1, usage_entry(end_user="a"), usage_entry(end_user="b", cost_usd="0.25")
        )
        await record_usage(store, instance_id, ledger_id, 2, usage_entry(days_ago=2, end_user="a"))
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        await follower.catch_up()

        report = await usage_report(pool, instance_id, last=LAST_DAY, days=4)
        assert [day.requests for day in report.days] == [0, 1, 0, 2]
        assert report.days[0].day == date(2026, 9, 18)
        assert report.days[3].cost_usd == Decimal("0.251")
        assert report.days[3].prompt_tokens == 200
        assert report.unique_end_users == 2
        known = await spent(pool, instance_id, today=LAST_DAY)
        assert (known.daily_usd, known.monthly_usd) == (Decimal("0.251"), Decimal("0.252"))
        assert (await lane_backlogs(pool, "usage_daily"))[instance_id.bytes[15] & 63] == (0, None)


@pytest.mark.parametrize(
    ("zone", "last"), [("Africa/Cairo", date(2024, 4, 27)), ("America/Santiago", date(2024, 9, 10))]
)
async def test_no_day_is_missing_in_time_zones_whose_clocks_change_at_midnight(
    database_url: str, owner_conn: psycopg.AsyncConnection, zone: str, last: date
) -> None:
    name = sql.Identifier(owner_conn.info.dbname)
    await owner_conn.execute(sql.SQL("ALTER DATABASE {} SET timezone TO {}").format(name, zone))

    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        report = await usage_report(pool, uuid4(), last=last, days=5)
        known = await spent(pool, uuid4(), today=last)

    assert [day.day for day in report.days] == [last - timedelta(days=ago) for ago in (4, 3, 2, 1, 0)]
    assert (known.daily_usd, known.monthly_usd) == (0, 0)


async def test_a_batch_that_the_agent_sends_twice_counts_once(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await create_instance(store), uuid4()
        await record_usage(store, instance_id, ledger_id, 1, usage_entry())
        await record_usage(store, instance_id, ledger_id, 1, usage_entry())
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        await follower.catch_up()
        await follower.catch_up()

        report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


async def test_sums_of_usage_are_capped_at_what_their_columns_hold(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await create_instance(store), uuid4()
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()
        much = replace(usage_entry(cost_usd="600000000000"), prompt_tokens=6 * 10**17, completion_tokens=6 * 10**17)
        for seq, entries in enumerate(([much], [much], [much, much, much], [usage_entry()]), start=1):
            await record_usage(store, instance_id, ledger_id, seq, *entries)
            await follower.catch_up()

        (day,) = (await usage_report(pool, instance_id, last=LAST_DAY, days=1)).days
        assert (day.requests, day.cost_usd) == (6, COST_USD_MAX)
        assert day.prompt_tokens == day.completion_tokens == TOKENS_MAX
        assert set((await lane_backlogs(pool, "usage_daily")).values()) == {(0, None)}
        assert (await dry_run_here(database_url, UsageDaily())).drifted == 0


async def test_several_followers_share_the_lanes_and_process_each_event_once(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        ids = [await create_instance(store, customer_id=f"customer-{n}") for n in range(30)]
        followers = [Follower(pool, UsageDaily()) for _ in range(3)]
        for follower in followers:
            await follower.create_checkpoints()

        async def write() -> None:
            for seq in range(1, 4):
                for instance_id in ids:
                    await record_usage(store, instance_id, instance_id, seq, usage_entry())

        async def follow(follower: Follower, written: asyncio.Task[None]) -> None:
            while not written.done():
                await follower.catch_up()

        written = asyncio.create_task(write())
        await asyncio.gather(written, *(follow(follower, written) for follower in followers))
        await followers[0].catch_up()

        for instance_id in ids:
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == 3


async def test_a_projection_that_is_far_behind_catches_up_beside_projections_that_are_not(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=8)
        ahead = Follower(pool, Fleet(), Activity())
        await ahead.create_checkpoints()
        await ahead.catch_up()
        usage, late = await create_instance(store), uuid4()
        await record_usage(store, usage, late, 1, usage_entry())
        together = Follower(pool, UsageDaily(), Fleet(), Activity())
        await together.create_checkpoints()

        await together.catch_up()

        for name in ("usage_daily", "fleet", "activity"):
            assert set((await lane_backlogs(pool, name)).values()) == {(0, None)}
    for projection in (UsageDaily(), Fleet(), Activity()):
        report = await dry_run_here(database_url, projection)
        assert (report.drifted, report.rows_compared > 0) == (0, True)


@pytest.mark.parametrize(
    "small",
    [{"projections.follower.BATCH_MAX": 2, "projections.follower.LANE_BATCH_MIN": 2}, {"events.pages.PAGE_BYTES": 1}],
    ids=["limited by events", "limited by bytes"],
)
async def test_catching_up_reads_all_new_events_however_many_pages_they_fill(
    database_url: str, monkeypatch: pytest.MonkeyPatch, small: dict[str, int]
) -> None:
    for limit, value in small.items():
        monkeypatch.setattr(limit, value)
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        follower = Follower(pool, Fleet(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        for name in ("fleet", "activity"):
            assert set((await lane_backlogs(pool, name)).values()) == {(0, None)}
