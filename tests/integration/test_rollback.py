"""A rollback: what was live before is live again, with everything that has been appended since."""

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
from tests import lives
from tests.rebuilding import compared, follow_all, hydracore, rebuilt, write_lives
from tests.requests_to_log import open_store, origin, requested

TURNS = b"""
SELECT count(*)
  FROM pg_locks
 WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname ~ '_g[0-9]+$' ORDER BY 1"


async def test_a_rollback_goes_back_to_the_earlier_generation_with_all_that_came_since(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=8)
        await follow_all(pool)
        for start, projection in ((8, ReservationProjection()), (12, UsageDaily())):
            await rebuilt(database_url, projection)
            await write_lives(store, count=4, start=start)
            await follow_all(pool)

            report = await rollback(database_url, projection)

            live = await generations.live_generation(owner_conn, projection.name)
            assert live is not None
            assert (report.generation, live.number) == (1, 1)
            assert (await compared(database_url, projection)).drifted == 0
            assert [one.number for one in await prune(database_url, projection.name)] == [2]
            assert await (await owner_conn.execute(SCHEMAS)).fetchall() == []
            # What comes at once is not turned away by a session that is not quite gone.
            assert await (await owner_conn.execute(TURNS)).fetchone() == (0,)
            with pytest.raises(NothingToRollBackTo):
                await rollback(database_url, projection)


async def test_a_rollback_takes_all_that_came_since_however_many_pages_that_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catching_up, "FACTS_MAX", 2)
    monkeypatch.setattr(catching_up, "LANE_FACTS_MIN", 2)
    async with open_store(database_url) as (store, pool):
        instance_id = await requested(store)
        await follow_all(pool)
        await rebuilt(database_url, UsageDaily())
        for seq in range(1, 6):
            await store.execute(instance_id, lives.usage(seq), origin("agent:x"))
        await follow_all(pool)

        await rollback(database_url, UsageDaily())

        report = await compared(database_url, UsageDaily())
        assert (report.drifted, report.rows_compared > 0) == (0, True)


async def test_a_rollback_goes_back_to_what_nobody_had_followed_yet_when_it_was_replaced(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=4)
        # Before any relay has run.
        await rebuilt(database_url, UsageDaily())
        await follow_all(pool)
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        assert (await rollback(database_url, UsageDaily())).generation == 1

        assert (await compared(database_url, UsageDaily())).drifted == 0
        # Whoever follows all the while goes on, in lanes too in which there was nothing.
        await write_lives(store, count=32, start=4)
        assert await follower.catch_up() > 0
        assert (await compared(database_url, UsageDaily())).drifted == 0
        (usage,) = [one for one in await status(owner_conn, sample_s=0) if one.name == "usage_daily"]
        assert usage.behind == 0


async def test_what_somebody_has_put_into_a_generation_s_schema_is_not_dropped_once_that_is_live(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    assert (await rebuilt(database_url, ProvisionLogProjection())).generation == 2
    await owner_conn.execute("CREATE TABLE provision_log_g2.notes ()")

    assert [one.number for one in await prune(database_url, "provision_log")] == [1]

    assert await (await owner_conn.execute(SCHEMAS)).fetchall() == [("provision_log_g2",)]


async def test_a_rollback_goes_back_to_what_was_live_before_and_not_to_what_was_built_last(database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        await write_lives(store, count=1)
    projection = ProvisionLogProjection()
    assert [(await rebuilt(database_url, projection)).generation for _ in range(2)] == [2, 3]
    # 3 is no good, and what is built after it is neither.
    assert (await rollback(database_url, projection)).generation == 2
    assert (await rebuilt(database_url, projection)).generation == 4

    assert [(await rollback(database_url, projection)).generation for _ in range(3)] == [2, 4, 2]


async def test_whoever_goes_back_is_told_what_a_second_rollback_would_do(database_url: str) -> None:
    for _ in range(2):
        await rebuilt(database_url, ProvisionLogProjection())

    back, forth = [await hydracore(database_url, "rollback", "provision_log") for _ in range(2)]

    assert back.stdout.startswith("provision_log: generation 2 is live again in place of 3; ")
    assert "another rollback would return to generation 3, never to one before 2" in back.stdout
    assert forth.stdout.startswith("provision_log: generation 3 is live again in place of 2; ")


async def test_what_lacks_something_is_not_offered_for_a_second_rollback(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await rebuilt(database_url, ProvisionLogProjection())
    await owner_conn.execute("DROP TABLE provision_log")

    done = await hydracore(database_url, "rollback", "provision_log")

    assert (len(done.stdout.splitlines()), "the table provision_log was missing" in done.stdout) == (1, True)
