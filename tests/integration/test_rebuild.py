"""A rebuild replaces the live rows by rows folded from the log. It can be resumed and undone, and compares first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from events import upcast
from events.types import PlacementChosen
from projections import generations
from projections.copying import copy_in_async
from projections.definition import Inline
from projections.errors import EventRefused, FoldFailed, RebuildBusy, WritersNotStopped
from projections.fact_pages import page_statement
from projections.fleet import Fleet
from projections.folding import fold_lanes
from projections.instance import InstanceProjection
from projections.processes import fold_in_processes
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import rebuild
from projections.registry import projections
from projections.reservation import ReservationProjection
from projections.tables import Table
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.rebuilding import QUIET, dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import create_instance, open_store, origin
from tests.waiting import BETWEEN_WRITES_S


async def test_a_rebuild_includes_events_that_are_appended_during_its_fold(database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        ids = await write_instances(store, count=12)

        async def fold_and_write(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
            await fold_here(database_url)(projection, build, progress)
            await write_instances(store, count=6, start=12)
            for instance_id in ids[:3]:
                await store.execute(instance_id, lifecycle.delete(), origin())
            # A value that one instance releases and another reserves, in whatever lanes they are.
            await store.execute(ids[1], lifecycle.delete(), origin())
            for step in lifecycle.TEARDOWN_STEPS:
                await store.execute(ids[1], lifecycle.teardown(step), origin())
            heir = await create_instance(store, customer_id="heir")
            await store.execute(heir, lifecycle.plan(hostname="host-1-1", vpn_ip="10.64.0.1"), origin())

        for projection in (InstanceProjection(), ReservationProjection(), ProvisionLogProjection()):
            folding = fold_and_write if projection.name == "instance" else fold_here(database_url)
            report = await rebuild(database_url, projection, folding=folding, callbacks=QUIET)
            assert report.stopped_s is not None, report.drift


async def test_edited_rows_are_reported_and_replaced_only_if_drift_is_accepted(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        ids = await write_instances(store, count=8)
    await owner_conn.execute("UPDATE instance SET status = 'running' WHERE id = %s", (ids[0],))
    await owner_conn.execute("DELETE FROM instance WHERE id = %s", (ids[1],))

    told = await dry_run_here(database_url, InstanceProjection())
    refused = await rebuild_here(database_url, InstanceProjection())

    assert told.stopped_s is refused.stopped_s is None
    drift = {UUID(one.key["id"]): one for one in told.drift}
    assert (told.drifted, drift.keys()) == (2, set(ids[:2]))
    assert (drift[ids[0]].live, drift[ids[0]].fresh) == ({"status": "running"}, {"status": "pending"})
    assert drift[ids[1]].live is None
    assert drift[ids[1]].fresh is not None
    status = await (await owner_conn.execute("SELECT status FROM instance WHERE id = %s", (ids[0],))).fetchone()
    assert status == ("running",)

    accepted = await rebuild_here(database_url, InstanceProjection(), accept_drift=True)

    assert (accepted.resumed, accepted.drifted) == (True, 2)
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0


@pytest.mark.parametrize("name", ["instance", "activity"])
async def test_a_lane_that_lost_an_event_stops_the_build(
    name: str, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)
    await owner_conn.execute("DELETE FROM event WHERE ctid = (SELECT min(ctid) FROM event)")

    with pytest.raises(FoldFailed, match="LogCorrupted"):
        await rebuild(
            database_url, projections()[name], folding=fold_in_processes(database_url, workers=1), callbacks=QUIET
        )


async def test_a_row_that_its_table_cannot_store_fails_the_build_which_can_be_resumed(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)
    projection = InstanceProjection()
    build = await generations.begin(owner_conn, projection)
    await owner_conn.execute("ALTER TABLE instance_g2.instance ALTER version TYPE uuid USING NULL")

    with pytest.raises(AttributeError, match="'int' object"):
        await asyncio.to_thread(fold_lanes, database_url, projection, build)

    await owner_conn.execute("ALTER TABLE instance_g2.instance ALTER version TYPE integer USING 0")
    assert (await rebuild_here(database_url, projection)).resumed


async def test_only_one_rebuild_of_a_projection_runs_at_a_time(database_url: str) -> None:
    folding, go_on = asyncio.Event(), asyncio.Event()

    async def wait(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        folding.set()
        await go_on.wait()
        await fold_here(database_url)(projection, build, progress)

    first = asyncio.create_task(rebuild(database_url, Fleet(), folding=wait, callbacks=QUIET))
    await folding.wait()

    with pytest.raises(RebuildBusy):
        await rebuild_here(database_url, Fleet())

    assert (await rebuild_here(database_url, UsageDaily())).stopped_s is not None
    go_on.set()
    await first


async def test_a_swap_gives_up_on_a_locked_lane_without_blocking_writers_of_other_lanes(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap.TRIES_MAX", 2)
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
        async with await psycopg.AsyncConnection.connect(database_url) as blocker:
            await blocker.execute("SELECT FROM lane WHERE lane = 63 FOR UPDATE")

            with pytest.raises(WritersNotStopped):
                await rebuild_here(database_url, InstanceProjection())

            # The other lanes take appends at once, and the read table is the old one.
            await owner_conn.execute("SET statement_timeout = '2s'")
            await owner_conn.execute("SELECT FROM lane WHERE lane < 63 FOR UPDATE")
        assert (await rebuild_here(database_url, InstanceProjection())).resumed


async def test_a_swap_that_is_aborted_during_a_copy_releases_its_locks_and_can_be_repeated(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.swap.TRIES_MAX", 2)
    await owner_conn.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
    )
    async with open_store(database_url) as (store, _):
        (instance_id,) = await write_instances(store, count=1)

        async def fold_and_slow_down(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
            await fold_here(database_url)(projection, build, progress)
            await owner_conn.execute(
                "CREATE TRIGGER slow AFTER INSERT ON instance_g2.instance FOR EACH STATEMENT EXECUTE FUNCTION slow()"
            )

        async def write_on() -> None:
            for number in itertools.count(await used(owner_conn) + 1):
                await store.execute(instance_id, lifecycle.usage(number), origin("agent:x"))
                await asyncio.sleep(BETWEEN_WRITES_S)

        writing = asyncio.create_task(write_on())
        with pytest.raises(WritersNotStopped):
            await rebuild(database_url, InstanceProjection(), folding=fold_and_slow_down, callbacks=QUIET)
        writing.cancel()
        await asyncio.wait((writing,))

        await owner_conn.execute("DROP TRIGGER slow ON instance_g2.instance")
        report = await rebuild_here(database_url, InstanceProjection())
        assert (report.resumed, report.drifted, report.stopped_s is not None) == (True, 0, True)


async def test_timeouts_and_isolation_set_on_the_database_do_not_apply_to_a_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    await owner_conn.execute(
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_sleep(0.5);
             IF current_setting('transaction_isolation') <> 'read committed' THEN RAISE 'isolated'; END IF;
             IF current_setting('idle_session_timeout') <> '0' THEN RAISE 'ended when idle'; END IF;
             IF current_setting('lock_timeout') <> '0' THEN RAISE 'ended when it waits'; END IF;
             RETURN NULL;
           END $$"""
    )
    for limit in (
        "statement_timeout = '200ms'",
        "transaction_timeout = '200ms'",
        "idle_session_timeout = '1min'",
        "lock_timeout = '1min'",
        "default_transaction_isolation = serializable",
    ):
        alter = sql.SQL("ALTER DATABASE {} SET " + limit).format(sql.Identifier(owner_conn.info.dbname))
        await owner_conn.execute(alter)

    async def slow_down_and_fold(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        await owner_conn.execute(
            "CREATE TRIGGER slow AFTER INSERT ON instance_g2.instance FOR EACH STATEMENT EXECUTE FUNCTION slow()"
        )
        await fold_here(database_url)(projection, build, progress)

    report = await rebuild(database_url, InstanceProjection(), folding=slow_down_and_fold, callbacks=QUIET)

    assert (report.drifted, report.stopped_s is not None) == (0, True)


async def used(connection: psycopg.AsyncConnection) -> int:
    """How many batches of usage there are."""
    cursor = await connection.execute("SELECT count(*) FROM event WHERE type = 'usage_recorded'")
    return (await cursor.fetchone() or (0,))[0]


async def test_concurrent_folds_fold_each_lane_once_even_if_one_claim_is_lost(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=8)
    projection = InstanceProjection()
    build = await generations.begin(owner_conn, projection)
    left = "SELECT count(*), min(lane) FROM projection_lane WHERE folded_at IS NULL"
    lanes, first = await (await owner_conn.execute(left)).fetchone() or (0, 0)
    # Another process claims a lane, and ends before it has folded it.
    async with await psycopg.AsyncConnection.connect(database_url) as gone:
        await gone.execute(
            "SELECT FROM projection_lane WHERE name = %s AND generation = %s AND lane = %s FOR UPDATE",
            (build.name, build.number, first),
        )
        folded = asyncio.gather(*(asyncio.to_thread(fold_lanes, database_url, projection, build) for _ in range(3)))
        await gone.rollback()

    assert sum(await folded) == lanes
    assert isinstance(projection, Inline)
    assert (await rebuild_here(database_url, projection)).resumed


async def test_rows_with_any_text_are_copied_unchanged(owner_conn: psycopg.AsyncConnection) -> None:
    texts = (
        "plain",
        "",
        "null",
        'a "quoted" one',
        "a\\b",
        "a\tb\nc\rd",
        "\\N",
        "\\.",
        ",",
        "\x01",
        "\\",
        '\\"',
        "süß",
        None,
    )
    rows = [
        (text, number, {"said": text}, datetime(2026, 9, 21, 22, 0, 0, 123_000, UTC), Decimal("0.10"), UUID(int=number))
        for number, text in enumerate(texts)
    ]
    table = Table("odd", key=("n",), columns=("said", "n", "document", "at", "cost", "id"), stream=None)
    await owner_conn.execute(
        "CREATE TEMP TABLE odd (said text, n int, document json, at timestamptz, cost numeric, id uuid)"
    )

    await copy_in_async(owner_conn, table, rows)

    cursor = await owner_conn.execute("SELECT said, n, document, at, cost, id FROM odd ORDER BY n")
    assert await cursor.fetchall() == rows


@pytest.fixture
def upper_case_providers(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """As if providers had been written in lower case once, and in capitals since."""
    monkeypatch.setattr(PlacementChosen, "schema_version", 2)
    monkeypatch.setitem(upcast.CURRENT_VERSIONS, "placement_chosen", 2)
    monkeypatch.setitem(
        upcast.STEPS, ("placement_chosen", 1), lambda fields: {**fields, "provider": fields["provider"].upper()}
    )
    page_statement.cache_clear()
    yield
    page_statement.cache_clear()


async def test_rebuilds_and_followers_upcast_old_versions_of_events(
    database_url: str, owner_conn: psycopg.AsyncConnection, request: pytest.FixtureRequest
) -> None:
    async with open_store(database_url) as (store, pool):
        old = await write_instances(store, count=2)
        request.getfixturevalue("upper_case_providers")

        async def fold_and_write(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
            await fold_here(database_url)(projection, build, progress)
            # The build catches up with events of both versions.
            await store.execute(old[1], lifecycle.created(server_id="server"), origin("worker"))
            new = await create_instance(store, customer_id="new")
            await store.execute(
                new, lifecycle.plan(provider="Hetzner", hostname="n", vpn_ip="10.64.0.9"), origin("worker")
            )

        await rebuild(database_url, InstanceProjection(), folding=fold_and_write, callbacks=QUIET, accept_drift=True)
        await follow_all(pool)
        await rebuild_here(database_url, Fleet())

    rebuilt_rows = await owner_conn.execute("SELECT DISTINCT provider FROM instance WHERE provider <> '' ORDER BY 1")
    assert await rebuilt_rows.fetchall() == [("CLOUDSIM",), ("Hetzner",)]
    # First the followed tables, then those that a build folded.
    for schema in ("fleet_g1", "public"):
        await owner_conn.execute("SELECT set_config('search_path', %s, false)", (schema,))
        followed = await owner_conn.execute("SELECT DISTINCT provider FROM fleet WHERE provider <> '' ORDER BY 1")
        assert await followed.fetchall() == [("CLOUDSIM",), ("Hetzner",)], schema


async def test_an_event_version_of_a_later_release_stops_a_build_and_parks_a_lane(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await owner_conn.execute("UPDATE event SET schema_version = 2 WHERE type = 'placement_chosen'")

        with pytest.raises(EventRefused, match="EventUnreadable: Version 2 of event placement_chosen"):
            await rebuild_here(database_url, InstanceProjection())
        await follow_all(pool)

    found = await owner_conn.execute("SELECT follower, error FROM checkpoint WHERE error IS NOT NULL")
    # `activity` does not read the content of events.
    assert set(await found.fetchall()) == {("fleet", "EventUnreadable (placement_chosen)")}


async def test_large_events_beyond_the_target_of_a_fold_are_left_to_the_catch_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.folding.SHARED_ROW_BYTES_MAX", 0)
    async with open_store(database_url) as (store, _):
        ids = await write_instances(store, count=3)

        async def write_and_fold(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
            for instance_id in ids:
                await store.execute(instance_id, lifecycle.configure(agent_name="Eve"), origin())
            await fold_here(database_url)(projection, build, progress)

        report = await rebuild(database_url, InstanceProjection(), folding=write_and_fold, callbacks=QUIET)

    assert (report.swapped, report.drifted) == (True, 0)
