"""A projection whose code is newer than its table is rebuilt first and served after; both releases run meanwhile."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from events.store import EventStore
from hydracore.cli.projections_view import show_report
from hydracore.db.pool import open_pool
from projections import generations, operations
from projections.activity import Activity, ActivityFold
from projections.definition import Followed, Projection
from projections.errors import FoldFailed, Outdated
from projections.folding import fold_lanes
from projections.follower import Follower
from projections.generations import Generation
from projections.inline import inline_projections
from projections.instance import InstanceProjection
from projections.rebuild import dry_run, prune, rebuild, rollback
from projections.reservation import ReservationProjection
from projections.tables import Rows
from projections.versions import Versions
from tests import lifecycle
from tests.next_release import ActivityV2, Edited, InstanceV2
from tests.rebuilding import QUIET, dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import create_instance, open_store, origin
from tests.waiting import until


async def test_only_the_release_whose_version_is_live_follows_a_projection(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=6)
        await follow_all(pool)
        old, new = Follower(pool, Activity()), Follower(pool, ActivityV2())
        await write_instances(store, count=2, start=6)

        assert await new.catch_up() == 0
        assert await old.catch_up() > 0
        report = await rebuild_here(database_url, ActivityV2())
        await write_instances(store, count=2, start=8)

        assert (report.version_before, report.version, report.drifted) == (1, 2, 0)
        assert await old.catch_up() == 0
        assert await new.catch_up() > 0
        assert (await dry_run_here(database_url, ActivityV2())).drifted == 0

        # Back to the old release: its code brings its table up to the end of the log.
        for attempt in (rebuild_here, dry_run_here):
            with pytest.raises(
                Outdated, match="activity is live in version 2, which is newer than this release's version 1"
            ):
                await attempt(database_url, Activity())
        await rollback(database_url, Activity())
        await write_instances(store, count=2, start=10)
        assert await new.catch_up() == 0
        assert await old.catch_up() > 0
        assert (await dry_run_here(database_url, Activity())).drifted == 0


async def test_a_changed_column_is_compared_again_once_its_version_is_live(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    assert (await rebuild_here(database_url, ActivityV2())).drifted == 0

    edited = await owner_conn.execute("UPDATE activity SET events = events + 1 WHERE command = 'RequestInstance'")

    assert edited.rowcount > 0
    assert (await dry_run_here(database_url, ActivityV2())).drifted == edited.rowcount


async def test_an_unfinished_build_of_another_release_is_replaced(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    def break_off(phase: str) -> None:
        if phase == "comparing":
            raise FoldFailed("activity", "it was killed")

    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)
    with pytest.raises(FoldFailed):
        await rebuild(
            database_url, Activity(), folding=fold_here(database_url), callbacks=QUIET._replace(phase=break_off)
        )

    report = await rebuild_here(database_url, ActivityV2())

    live = await generations.live_generation(owner_conn, "activity")
    assert live is not None
    assert (live.version, live.number, report.resumed, report.drifted) == (2, report.generation, False, 0)


async def test_a_release_folds_only_lanes_of_a_build_of_its_own_version(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)
    # Builds of another version, of another projection, and of another projection under the same number.
    others = [await generations.begin(owner_conn, one()) for one in (InstanceProjection, *[ReservationProjection] * 2)]
    before = [await generations.progress(owner_conn, one) for one in others]
    build = await generations.begin(owner_conn, InstanceV2())

    # Each fold ends at once. If not, it is stopped here.
    until_s = time.monotonic() + 40
    async with asyncio.timeout(30):
        old, new = [
            await asyncio.to_thread(fold_lanes, database_url, one, build, until_s=until_s)
            for one in (InstanceProjection(), InstanceV2())
        ]

    assert (old, new) == (0, 2)
    done = await generations.progress(owner_conn, build)
    assert (others[-1].number, build.number, done.lanes, done.lanes_folded) == (3, 3, 64, 64)
    assert [(one.lanes, one.lanes_folded) for one in before] == [(64, 62)] * 3
    assert [await generations.progress(owner_conn, one) for one in others] == before


async def test_a_dry_run_of_one_release_keeps_the_unfinished_build_of_another(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def break_off(_projection: Projection, build: Generation, _progress: object) -> None:
        raise FoldFailed(build.name, "it was killed")

    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)
    with pytest.raises(FoldFailed):
        await rebuild(database_url, ActivityV2(), folding=break_off, callbacks=QUIET)

    dry = await dry_run_here(database_url, Activity())
    with pytest.raises(FoldFailed):
        await dry_run(database_url, Activity(), folding=break_off, callbacks=QUIET)
    place = await (await owner_conn.execute("SELECT lane, seq FROM event ORDER BY lane, seq LIMIT 1")).fetchone()
    assert place is not None
    lane, seq = place
    await operations.skip_in_build(
        owner_conn, "activity", lane, seq, operations.Author("operator:eve", "ticket 7"), version=2
    )
    report = await rebuild_here(database_url, ActivityV2(), accept_drift=True)

    assert (dry.resumed, dry.drifted) == (False, 0)
    assert (report.resumed, report.generation, report.swapped) == (True, 2, True)
    # The tables of the older release's interrupted dry run are gone, too.
    assert [one.state for one in await prune(database_url, "activity")] == ["previous"]


async def test_writers_of_both_releases_continue_through_the_swap_to_a_new_inline_version(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    rest = tuple(one for one in inline_projections() if one.name != "instance")
    async with open_pool(database_url, role="hydracore_app", application="test", size=4) as pool:
        # The release that brings version 2 knows version 1 too, and writes the live one.
        versions = Versions(InstanceV2(), InstanceProjection())
        newer = EventStore(pool, inline=(*rest, versions))
        older = EventStore(pool, inline=(*rest, InstanceProjection()))
        await write_instances(older, count=4)
        await create_instance(newer, customer_id="served by the new release before there is a table of its version")
        assert versions.version == 1
        written = 0
        stop = asyncio.Event()

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                instance_id = await create_instance(newer, customer_id=f"new-{written}")
                await newer.execute(instance_id, lifecycle.delete(), origin())
                written += 1

        writing = asyncio.create_task(write())
        await create_instance(older, customer_id="still served by the old release")
        report = await rebuild_here(database_url, InstanceV2())
        at_swap = written
        await until(lambda: written >= at_swap + 3)
        stop.set()
        await writing

        assert (report.version_before, report.version, report.drifted) == (1, 2, 0)
        wrong = "SELECT count(*) FROM instance WHERE shout IS DISTINCT FROM upper(status)"
        assert await (await owner_conn.execute(wrong)).fetchone() == (0,)
        count = await (await owner_conn.execute("SELECT count(*) FROM instance")).fetchone()
        assert count == (4 + 1 + written + 1,)
        assert (await dry_run_here(database_url, InstanceV2())).drifted == 0
        assert versions.version == 2
        await newer.close()
        await older.close()


async def test_an_event_type_that_only_a_newer_release_knows_parks_no_followed_projection(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_instances(store, count=2)
        for instance_id in ids:
            await store.execute(instance_id, lifecycle.configure(agent_name="Bo"), origin())
        renamed = await owner_conn.execute(
            "UPDATE event SET type = 'name_chosen', payload = replace(payload::text, type, 'name_chosen')::json"
            " WHERE type = 'config_changed'"
        )

        await follow_all(pool)

    assert renamed.rowcount > 0
    parked = await owner_conn.execute("SELECT follower, lane, error FROM checkpoint WHERE error IS NOT NULL")
    assert await parked.fetchall() == []
    counted = await owner_conn.execute("SELECT sum(events) = (SELECT count(*) FROM event) FROM activity")
    assert await counted.fetchone() == (True,)


class RegionFold(ActivityFold):
    def rows(self) -> Rows:
        return {name: [(*row, "eu") for row in rows] for name, rows in super().rows().items()}


class ActivityByRegion(Activity):
    """Has another column in its key."""

    version = 2
    tables = (
        Activity.tables[0]._replace(
            key=(*Activity.tables[0].key, "region"), columns=(*Activity.tables[0].columns, "region")
        ),
    )
    ddl = Edited(
        Activity.ddl,
        column=(b"last_at timestamptz NOT NULL\n", b"last_at timestamptz NOT NULL,\n region text NOT NULL\n"),
        key=(b"PRIMARY KEY (lane, tenant_id,", b"PRIMARY KEY (region, lane, tenant_id,"),
    )

    def begin(self) -> RegionFold:
        return RegionFold()


class ActivityByOtherDay(Activity):
    """Gives a column of its key another meaning."""

    version = 2
    tables = (Activity.tables[0]._replace(changed=("day",)),)


@pytest.mark.parametrize("projection", [ActivityByRegion(), ActivityByOtherDay()])
async def test_a_version_with_another_key_is_swapped_and_reported_as_not_compared(
    database_url: str, capsys: pytest.CaptureFixture[str], projection: Followed
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)

    report = await rebuild_here(database_url, projection)

    assert (report.version_before, report.version, report.stopped_s is not None) == (1, 2, True)
    assert (report.rows_compared, report.drifted, report.left_out) == (0, 0, ["activity"])
    show_report(report, dry_run=False)
    assert "0 differ; NOT compared, because their keys differ: activity;" in capsys.readouterr().out
