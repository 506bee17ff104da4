"""Nothing is swapped uncompared: drift between the comparison of all rows and the swap is found as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest

from events.ids import LANES, lane_of
from events.pacing import Pace
from hydracore.signals import run_to_completion
from projections import generations
from projections.activity import Activity
from projections.candidate import Candidate, Unverified
from projections.catching_up import CatchUpStep
from projections.definition import Projection
from projections.drift import Scope
from projections.folding import fold_lanes
from projections.follower import Follower
from projections.instance import InstanceProjection
from projections.rebuild import ProgressCallbacks, rebuild
from projections.rebuild_lock import connect
from projections.report import Report
from projections.swap_preparation import compare_with_live
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.next_release import ActivityV2
from tests.rebuilding import dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import open_store, origin
from tests.waiting import until


def free_lane(ids: Iterable[UUID]) -> int:
    """A lane in which none of these instances is."""
    return min({*range(LANES)} - {lane_of(instance_id) for instance_id in ids})


async def rebuilt_while(
    database_url: str, projection: Projection, work: Callable[[], Awaitable[None]], *, accept_drift: bool = False
) -> Report:
    """A rebuild with `work` done after the comparison of all rows, before the first step towards the swap."""

    async def do() -> None:
        await work()

    def phase(text: str) -> None:
        if text == "swapping":
            with ThreadPoolExecutor(1) as aside:
                aside.submit(run_to_completion, do()).result()

    callbacks = ProgressCallbacks(phase=phase, folded=lambda _: None)
    return await rebuild(
        database_url, projection, folding=fold_here(database_url), callbacks=callbacks, accept_drift=accept_drift
    )


async def write_and_edit(database_url: str, ids: list[UUID]) -> None:
    """Change three instances by commands, and edit a row of one of them."""
    async with open_store(database_url) as (store, pool):
        for instance_id in ids[:3]:
            await store.execute(instance_id, lifecycle.configure(agent_name="Eve"), origin())
        async with pool.connection() as connection:
            await connection.execute("UPDATE instance SET hostname = 'edited' WHERE id = %s", (ids[1],))


@pytest.mark.parametrize("accept_drift", [False, True])
@pytest.mark.parametrize("unverified_max", [1, 1_000])
async def test_drift_after_the_comparison_aborts_the_swap_unless_it_is_accepted(
    database_url: str, monkeypatch: pytest.MonkeyPatch, *, unverified_max: int, accept_drift: bool
) -> None:
    monkeypatch.setattr("projections.swap_preparation.UNVERIFIED_MAX", unverified_max)
    async with open_store(database_url) as (store, _):
        ids = await write_instances(store, count=4)

    edit = partial(write_and_edit, database_url, ids)
    report = await rebuilt_while(database_url, InstanceProjection(), edit, accept_drift=accept_drift)

    assert (report.swapped, report.drifted) == (accept_drift, 1)
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == (0 if accept_drift else 1)
    assert (report.drift[0].key["id"], report.drift[0].live) == (str(ids[1]), {"hostname": "edited"})


async def test_many_changed_streams_are_compared_before_writers_are_blocked(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap_preparation.UNVERIFIED_MAX", 1)
    async with (
        open_store(database_url) as (store, _),
        await psycopg.AsyncConnection.connect(database_url) as blocker,
    ):
        ids = await write_instances(store, count=4)
        await blocker.execute("SELECT FROM lane WHERE lane = %s FOR UPDATE", (free_lane(ids),))
        report = await rebuilt_while(database_url, InstanceProjection(), partial(write_and_edit, database_url, ids))

    assert (report.swapped, report.drifted) == (False, 1)


async def test_the_swap_of_a_followed_projection_waits_for_its_follower(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def waits() -> bool:
        query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%FROM checkpoint WHERE follower%%'"
        return (await owner_conn.execute(f"{query} AND datname = current_database()")).rowcount > 0

    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    async with await psycopg.AsyncConnection.connect(database_url) as follower:
        await follower.execute("SELECT FROM checkpoint WHERE follower = 'usage_daily' AND lane = 63 FOR UPDATE")
        rebuilding = asyncio.create_task(rebuild_here(database_url, UsageDaily()))
        await until(waits)
        await follower.rollback()

        report = await rebuilding

    assert (report.swapped, report.drifted) == (True, 0)


def test_an_unverified_stream_counts_from_the_first_catch_up_step_that_changed_it() -> None:
    stream = (0, UUID(int=1))
    unverified = Unverified(set(), {})

    for before in (3, 5):
        unverified.add(CatchUpStep(1, 1, {0}, {stream: before}))

    assert unverified.scope() == Scope(lanes={0}, streams={stream: 3})


@pytest.mark.parametrize(
    ("projection", "edit", "live"),
    [
        (UsageDaily(), "UPDATE usage_daily SET requests = 99 WHERE lane = %s", {"requests": 99}),
        (Activity(), "UPDATE activity SET commands = 99 WHERE lane = %s AND actor = 'api'", {"commands": 99}),
    ],
    ids=["rows of its instances", "all rows of the lane, which are sums"],
)
async def test_a_lane_that_the_live_follower_advances_after_the_comparison_is_compared_again(
    database_url: str, projection: Projection, edit: LiteralString, live: dict[str, int]
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_instances(store, count=4)
        await follow_all(pool)
        await store.execute(ids[2], lifecycle.usage(2), origin("agent:x"))

    async def follow_and_edit() -> None:
        async with open_store(database_url) as (_, pool):
            await follow_all(pool)
            async with pool.connection() as connection:
                await connection.execute(edit, (lane_of(ids[2]),))

    report = await rebuilt_while(database_url, projection, follow_and_edit)

    assert (report.stopped_s, report.drifted) == (None, 1)
    assert report.drift[0].live == live
    assert (await rebuild_here(database_url, projection)).stopped_s is None


async def test_drift_names_a_json_column_that_differs_only_in_its_text(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    await owner_conn.execute("UPDATE instance SET capabilities = capabilities::jsonb::text::json")

    report = await dry_run_here(database_url, InstanceProjection())

    (drift,) = report.drift
    assert drift.live == drift.fresh
    assert list(drift.live or ()) == ["capabilities"]


@pytest.mark.parametrize(
    "document",
    ['{"x": 1e400}', '{"x": "\\ud800"}', f"{'[' * 3000}{']' * 3000}"],
    ids=["a number beyond all floats", "half a surrogate pair", "deeper than Python can go"],
)
async def test_a_live_document_that_only_postgresql_can_read_is_shown_as_text_and_replaced(
    database_url: str, owner_conn: psycopg.AsyncConnection, document: str
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    await owner_conn.execute("UPDATE instance SET capabilities = %s", (document,))

    report = await rebuild_here(database_url, InstanceProjection(), accept_drift=True)

    (drift,) = report.drift
    assert (drift.live, drift.fresh) == ({"capabilities": document}, {"capabilities": {"chat": True}})
    assert report.swapped


async def test_all_rows_of_a_projection_without_a_follower_are_compared(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=6)
        await follow_all(pool)
        rows = (await owner_conn.execute("UPDATE activity SET commands = 777")).rowcount
        # Every process runs the next release, whose followers wait for its table.
        await write_instances(store, count=12, start=6)

        dry = await dry_run_here(database_url, ActivityV2())
        refused = await rebuild_here(database_url, ActivityV2())

        assert (dry.rows_compared, dry.drifted) == (refused.rows_compared, refused.drifted) == (rows, rows)
        assert refused.stopped_s is None
        accepted = await rebuild_here(database_url, ActivityV2(), accept_drift=True)
        assert (accepted.resumed, accepted.stopped_s is not None) == (True, True)
        # The events that had no follower are applied by the code that was waiting.
        assert await Follower(pool, ActivityV2()).catch_up() > 0
        again = await dry_run_here(database_url, ActivityV2())
        assert again.rows_compared > rows
        assert again.drifted == 0


async def test_a_build_that_is_ahead_of_the_live_tables_is_restarted(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=6)
        await follow_all(pool)
        await owner_conn.execute("UPDATE activity SET commands = 777")
        await write_instances(store, count=6, start=6)
    build = await generations.begin(owner_conn, ActivityV2())
    # As an earlier release began it.
    heads = "UPDATE projection_lane l SET target = h.head FROM lane_head h WHERE h.lane = l.lane AND h.head > 0"
    await owner_conn.execute(heads)

    report = await rebuild_here(database_url, ActivityV2())

    assert (report.resumed, report.generation, report.stopped_s) == (False, build.number, None)
    assert report.drifted == report.rows_compared > 0


async def test_a_row_that_changes_during_the_comparison_is_no_drift(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def waits() -> bool:
        query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return (await owner_conn.execute(query)).rowcount > 0

    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    build = await generations.begin(owner_conn, InstanceProjection())
    await asyncio.to_thread(fold_lanes, database_url, InstanceProjection(), build)
    build = await generations.index(owner_conn, InstanceProjection(), build)
    live = await generations.live_generation(owner_conn, "instance")
    candidate = Candidate.of(InstanceProjection(), build, live, Pace(full_speed=True))

    async with (
        await psycopg.AsyncConnection.connect(database_url) as writer,
        await connect(database_url) as comparing,
    ):
        await writer.execute("LOCK TABLE public.instance IN ACCESS EXCLUSIVE MODE")
        comparison = asyncio.create_task(compare_with_live(comparing, candidate, everything=True))
        await until(waits)
        # As an append changes it, together with its events.
        await writer.execute("UPDATE public.instance SET agent_name = 'Eve'")
        await writer.commit()

        assert (await comparison).drifted == 0

    assert candidate.unverified == Unverified(set(), {}), "only what changes from here on is compared again"
