"""What is done about one projection changes nothing for another, and a build knows its own lanes and no others."""

from __future__ import annotations

import psycopg
import pytest

from events.ids import LANES, lane_of
from projections import generations, operations
from projections.activity import Activity
from projections.definition import Projection
from projections.fleet import Fleet
from projections.follower import Follower
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import ProgressCallbacks, dry_run, rollback
from projections.reservation import ReservationProjection
from projections.usage_daily import UsageDaily
from tests.next_release import ActivityV2
from tests.parked_lanes import log_with_parked_lane, usage_seq
from tests.rebuilding import dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import open_store

EVE = operations.Author("operator:eve", "ticket 7")


async def test_a_follower_creates_checkpoints_for_its_own_projections_alone(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (_, pool):
        await Follower(pool, UsageDaily(), Fleet()).create_checkpoints()

    created = "SELECT follower, count(*) FROM checkpoint GROUP BY follower ORDER BY follower"
    assert await (await owner_conn.execute(created)).fetchall() == [("fleet", LANES), ("usage_daily", LANES)]
    for one in await operations.status(owner_conn, sample_s=0):
        assert [lane.lane for lane in one.lanes] == ([] if one.kind == "inline" else [*range(LANES)])


async def test_a_follower_moves_its_own_checkpoints_alone(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        projections = (UsageDaily(), Fleet(), Activity())
        await Follower(pool, *projections).create_checkpoints()

        for projection in projections:
            assert await Follower(pool, projection).catch_up() > 0

    for projection in projections:
        report = await dry_run_here(database_url, projection)
        assert (report.drifted, report.rows_compared > 0) == (0, True)


async def test_a_retry_concerns_one_lane_of_one_projection(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, _, refused):
        await owner_conn.execute("UPDATE checkpoint SET parked_until = 'infinity', error = 'no'")
        elsewhere = "INSERT INTO checkpoint (follower, lane, parked_until, error) SELECT 'fleet', lane, 'infinity', 'no' FROM lane"
        await owner_conn.execute(elsewhere)

        await operations.retry(owner_conn, "usage_daily", lane_of(refused), EVE)

    tried = "SELECT follower, lane FROM checkpoint WHERE parked_until <= now()"
    assert await (await owner_conn.execute(tried)).fetchall() == [("usage_daily", lane_of(refused))]


async def test_a_build_applies_events_that_another_projection_skips(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        place = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        await operations.skip(owner_conn, "usage_daily", *place, EVE)
        await follow_all(pool)

    for projection in (Activity(), Fleet()):
        assert projection.version == UsageDaily.version
        report = await dry_run_here(database_url, projection)
        assert (report.drifted, report.rows_compared > 0) == (0, True)


async def test_a_rollback_goes_back_to_a_generation_of_the_same_projection(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    for projection in (ProvisionLogProjection(), ReservationProjection()):
        await rebuild_here(database_url, projection)

    report = await rollback(database_url, ProvisionLogProjection())

    assert (report.name, report.generation) == ("provision_log", 1)
    live = {one.name: one.generation for one in await operations.status(owner_conn, sample_s=0)}
    assert (live["provision_log"], live["reservation"]) == (1, 2)


@pytest.mark.parametrize(
    ("other", "generation"), [(UsageDaily(), 2), (ActivityV2(), 3)], ids=["of another projection", "of the same"]
)
async def test_a_build_is_folded_beside_an_unfinished_one(
    database_url: str, owner_conn: psycopg.AsyncConnection, other: Projection, generation: int
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=8)
        await follow_all(pool)
    begun = await generations.begin(owner_conn, other)
    shown: list[generations.Progress] = []
    callbacks = ProgressCallbacks(phase=lambda _: None, folded=shown.append)

    report = await dry_run(database_url, Activity(), folding=fold_here(database_url), callbacks=callbacks)

    ((events,),) = await (await owner_conn.execute("SELECT count(*)::int FROM event")).fetchall()
    assert (report.generation, report.resumed, report.drifted) == (generation, False, 0)
    assert shown[-1] == generations.Progress(LANES, LANES, events, events)
    assert await generations.all_in_states(owner_conn, *generations.UNFINISHED) == [begun]


async def test_a_build_is_ahead_by_its_own_lanes_and_live_tables_alone(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        (first, *_) = await write_instances(store, count=8)
        await follow_all(pool)
        await Follower(pool, UsageDaily()).create_checkpoints()
    build, *others = [await generations.begin(owner_conn, one) for one in (Fleet(), Fleet(), UsageDaily(), Fleet())]
    assert build.number == others[1].number
    further = "UPDATE projection_lane SET target = target + 1000 WHERE (name, generation) = (%s, %s)"
    for other in others:
        await owner_conn.execute(further, (other.name, other.number))
    await owner_conn.execute("UPDATE checkpoint SET seq = 0 WHERE follower IN ('usage_daily', 'activity')")
    assert not await generations.is_ahead(owner_conn, build), "as it is folded"
    at_targets = "INSERT INTO checkpoint (follower, lane, seq) SELECT %s, lane, target FROM projection_lane WHERE (name, generation) = (%s, %s)"
    for one in (build, *others):
        await owner_conn.execute(at_targets, (one.follower, one.name, one.number))

    assert not await generations.is_ahead(owner_conn, build), "as it catches up"
    assert await generations.is_ahead(owner_conn, others[0])

    # And with a single event of a single lane.
    behind = "UPDATE checkpoint SET seq = seq - 1 WHERE follower = 'fleet' AND lane = %s"
    await owner_conn.execute(behind, (lane_of(first),))
    assert await generations.is_ahead(owner_conn, build)
