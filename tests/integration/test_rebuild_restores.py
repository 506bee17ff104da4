"""A missing part of a read table is reported, and a rebuild restores it from the log."""

from __future__ import annotations

import asyncio
import json
from typing import LiteralString

import psycopg
import pytest

from projections import generations
from projections.errors import NamesTaken, NothingToRollBackTo
from projections.folding import fold_lanes
from projections.rebuild import rollback
from projections.registry import projections
from tests.rebuilding import dry_run_here, follow_all, rebuild_here, run_projections_command, write_instances
from tests.store_commands import open_store

#: The damage, the projection that it concerns, and what is reported as missing.
LOSSES: dict[LiteralString, tuple[str, list[str]]] = {
    "DROP TABLE activity": ("activity", ["the table activity"]),
    "DROP TABLE usage_end_user": ("usage_daily", ["the table usage_end_user"]),
    "DELETE FROM projection WHERE name = 'instance'": ("instance", ["its row in `projection`"]),
    "DROP TABLE fleet; DELETE FROM projection WHERE name = 'fleet'": (
        "fleet",
        ["its row in `projection`", "the table fleet"],
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_missing_table_or_row_is_reported_and_restored_by_a_rebuild_that_accepts_drift(
    loss: LiteralString, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    name, missing = LOSSES[loss]
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
        await owner_conn.execute(loss)

        told = await run_projections_command(database_url, "status", name, "--json")
        seen = await run_projections_command(database_url, "status", name)
        listed = await run_projections_command(database_url, "list")
        refused = [
            await run_projections_command(database_url, "rebuild", name, "--workers", "1", *words)
            for words in ([], ["--dry-run"])
        ]
        repaired = await run_projections_command(database_url, "rebuild", name, "--workers", "1", "--accept-drift")

        assert json.loads(told.stdout)[0]["missing"] == missing
        assert f"{' and '.join(missing)} is missing: `rebuild {name} --accept-drift`" in seen.stdout
        assert listed.stdout.splitlines()[-1].startswith(f"{name}: {' and '.join(missing)} is missing: `rebuild")
        for one in refused:
            assert (one.exit_code, one.stdout) == (3, "")
            assert f"{' and '.join(missing)} of {name} is missing: `hydracore projections rebuild" in one.stderr
        assert (repaired.exit_code, repaired.stderr) == (0, "")
        assert f"{' and '.join(missing)} was missing" in repaired.stdout
        # Writers and followers continue as if nothing had happened.
        await write_instances(store, count=4, start=4)
        await follow_all(pool)
        assert (await dry_run_here(database_url, projections()[name])).drifted == 0
        assert (
            json.loads((await run_projections_command(database_url, "status", name, "--json")).stdout)[0]["missing"]
            == []
        )


async def test_a_rollback_leaves_a_generation_that_lacks_a_table_and_does_not_return_to_it(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)
    projection = projections()["provision_log"]
    await rebuild_here(database_url, projection)
    await owner_conn.execute("DROP TABLE provision_log")

    assert (await rollback(database_url, projection)).missing == ["the table provision_log"]

    assert (await dry_run_here(database_url, projection)).drifted == 0
    with pytest.raises(NothingToRollBackTo, match="the earlier generation is incomplete: provision_log is missing"):
        await rollback(database_url, projection)


@pytest.mark.parametrize(
    "loss", ["DROP SCHEMA fleet_g2 CASCADE", "DROP TABLE fleet_g2.fleet"], ids=["its schema", "a table"]
)
async def test_a_build_whose_tables_are_missing_is_restarted_and_not_continued(
    loss: LiteralString, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    fleet = projections()["fleet"]
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
        build = await generations.begin(owner_conn, fleet)
        await asyncio.to_thread(fold_lanes, database_url, fleet, build)
        await generations.index(owner_conn, fleet, build)
        await write_instances(store, count=4, start=4)
        await follow_all(pool)
    await owner_conn.execute(loss)

    report = await rebuild_here(database_url, fleet)

    assert (report.resumed, report.swapped, report.drifted) == (False, True, 0)
    assert [one.number for one in await generations.all_in_states(owner_conn, "previous")] == [1]


async def test_a_rebuild_names_a_renamed_table_that_is_in_its_way_before_it_folds(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    repair = ("rebuild", "fleet", "--workers", "1", "--accept-drift")
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
        await owner_conn.execute("ALTER TABLE fleet RENAME TO fleet_old")

        refused = await run_projections_command(database_url, *repair)

        assert (refused.exit_code, refused.stdout) == (3, "")
        assert (
            "fleet cannot be put in place, because other relations have the names that it needs: the index fleet_pkey of"
            in refused.stderr
        )
        assert "fleet_old. Rename or drop them, then run this again" in refused.stderr
        assert await generations.newest_in_states(owner_conn, "fleet", *generations.UNFINISHED) is None
        await owner_conn.execute("ALTER INDEX fleet_pkey RENAME TO fleet_old_pkey")
        assert (await run_projections_command(database_url, *repair)).exit_code == 0
        await follow_all(pool)
        assert (await dry_run_here(database_url, projections()["fleet"])).drifted == 0


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        ("ALTER TABLE fleet RENAME TO fleet_old", "the index fleet_pkey of fleet_old"),
        (
            "CREATE SCHEMA IF NOT EXISTS fleet_g2; CREATE TABLE fleet_g2.fleet ()",
            'another \\(relation "fleet" already exists',
        ),
    ],
    ids=["in the place of the earlier generation", "in the place of the live generation"],
)
async def test_a_rollback_names_what_is_in_its_way_and_succeeds_once_that_is_removed(
    database_url: str, owner_conn: psycopg.AsyncConnection, obstacle: LiteralString, told: str
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    projection = projections()["fleet"]
    await rebuild_here(database_url, projection)
    await owner_conn.execute(obstacle)

    with pytest.raises(NamesTaken, match=told):
        await rollback(database_url, projection)

    live = await generations.live_generation(owner_conn, "fleet")
    assert live is not None
    assert live.number == 2
    await owner_conn.execute("DROP TABLE IF EXISTS fleet_old; DROP TABLE IF EXISTS fleet_g2.fleet")
    assert (await rollback(database_url, projection)).generation == 1
