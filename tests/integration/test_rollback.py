"""A rollback: the earlier generation is live again, with everything that was appended since."""

from __future__ import annotations

import psycopg
import pytest

from projections import catching_up, generations
from projections.errors import NothingToRollBackTo
from projections.follower import Follower
from projections.operations import status
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import prune, rollback
from projections.reservation import ReservationProjection
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.rebuilding import dry_run_here, follow_all, rebuild_here, run_projections_command, write_instances
from tests.store_commands import create_instance, open_store, origin

TURNS = b"""
SELECT count(*)
  FROM pg_locks
 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname ~ '_g[0-9]+$' ORDER BY 1"


async def test_a_rollback_returns_to_the_earlier_generation_with_all_events_since(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=8)
        await follow_all(pool)
        for start, projection in ((8, ReservationProjection()), (12, UsageDaily())):
            await rebuild_here(database_url, projection)
            await write_instances(store, count=4, start=start)
            await follow_all(pool)

            report = await rollback(database_url, projection)

            live = await generations.live_generation(owner_conn, projection.name)
            assert live is not None
            assert (report.generation, live.number) == (1, 1)
            assert (await dry_run_here(database_url, projection)).drifted == 0
            assert [one.number for one in await prune(database_url, projection.name)] == [2]
            assert await (await owner_conn.execute(SCHEMAS)).fetchall() == []
            # The next command is not refused because a session has not ended yet.
            assert await (await owner_conn.execute(TURNS)).fetchone() == (0,)
            with pytest.raises(NothingToRollBackTo):
                await rollback(database_url, projection)


async def test_a_rollback_catches_up_over_any_number_of_pages(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catching_up, "FACTS_MAX", 2)
    monkeypatch.setattr(catching_up, "LANE_FACTS_MIN", 2)
    async with open_store(database_url) as (store, pool):
        instance_id = await create_instance(store)
        await follow_all(pool)
        await rebuild_here(database_url, UsageDaily())
        for seq in range(1, 6):
            await store.execute(instance_id, lifecycle.usage(seq), origin("agent:x"))
        await follow_all(pool)

        await rollback(database_url, UsageDaily())

        report = await dry_run_here(database_url, UsageDaily())
        assert (report.drifted, report.rows_compared > 0) == (0, True)


async def test_a_rollback_can_return_to_a_generation_that_was_replaced_before_it_had_a_follower(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        # Before any relay has run.
        await rebuild_here(database_url, UsageDaily())
        await follow_all(pool)
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        assert (await rollback(database_url, UsageDaily())).generation == 1

        assert (await dry_run_here(database_url, UsageDaily())).drifted == 0
        # A follower that runs all the while continues, also in lanes that were empty.
        await write_instances(store, count=32, start=4)
        assert await follower.catch_up() > 0
        assert (await dry_run_here(database_url, UsageDaily())).drifted == 0
        (usage,) = [one for one in await status(owner_conn, sample_s=0) if one.name == "usage_daily"]
        assert usage.behind == 0


async def test_another_table_in_the_schema_of_the_live_generation_is_not_dropped(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    assert (await rebuild_here(database_url, ProvisionLogProjection())).generation == 2
    await owner_conn.execute("CREATE TABLE provision_log_g2.notes ()")

    assert [one.number for one in await prune(database_url, "provision_log")] == [1]

    assert await (await owner_conn.execute(SCHEMAS)).fetchall() == [("provision_log_g2",)]


async def test_a_rollback_returns_to_the_generation_that_was_live_before_and_not_to_the_newest(
    database_url: str,
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    projection = ProvisionLogProjection()
    assert [(await rebuild_here(database_url, projection)).generation for _ in range(2)] == [2, 3]
    # Generation 3 is bad, and so is the one that is built after it.
    assert (await rollback(database_url, projection)).generation == 2
    assert (await rebuild_here(database_url, projection)).generation == 4

    assert [(await rollback(database_url, projection)).generation for _ in range(3)] == [2, 4, 2]


async def test_a_rollback_says_what_a_second_rollback_would_do(database_url: str) -> None:
    for _ in range(2):
        await rebuild_here(database_url, ProvisionLogProjection())

    back, forth = [await run_projections_command(database_url, "rollback", "provision_log") for _ in range(2)]

    assert back.stdout.startswith("provision_log: generation 2 is live again in place of 3; ")
    assert "another rollback would return to generation 3, never to one before 2" in back.stdout
    assert forth.stdout.startswith("provision_log: generation 3 is live again in place of 2; ")


async def test_a_generation_with_a_missing_table_is_not_offered_for_a_second_rollback(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await rebuild_here(database_url, ProvisionLogProjection())
    await owner_conn.execute("DROP TABLE provision_log")

    done = await run_projections_command(database_url, "rollback", "provision_log")

    assert (len(done.stdout.splitlines()), "the table provision_log was missing" in done.stdout) == (1, True)
