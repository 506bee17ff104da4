"""The tables that a rebuild puts in place have the shape and grants of those before, and statistics for the planner."""

from __future__ import annotations

import psycopg
import pytest

from projections import generations
from projections.instance import InstanceProjection
from projections.rebuild import rebuild, rollback
from projections.registry import projections
from tests.rebuilding import QUIET, dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import open_store

SHAPE = """
SELECT c.relname, coalesce(array_to_string(c.reloptions, ','), ''), pg_get_userbyid(c.relowner),
       (SELECT array_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
                         ORDER BY a.attnum)
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
       (SELECT array_agg(replace(pg_get_indexdef(i.indexrelid), n.nspname || '.', '') ORDER BY i.indexrelid::regclass::text)
          FROM pg_index i WHERE i.indrelid = c.oid),
       (SELECT array_agg(k.conname || ' ' || pg_get_constraintdef(k.oid) ORDER BY k.conname)
          FROM pg_constraint k WHERE k.conrelid = c.oid),
       (SELECT array_agg(grantee || ' ' || privilege_type ORDER BY grantee, privilege_type)
          FROM information_schema.role_table_grants g WHERE g.table_schema = n.nspname AND g.table_name = c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'public' AND c.relname = ANY (%s)
 ORDER BY c.relname
"""


@pytest.mark.parametrize("name", projections())
async def test_a_rebuilt_projection_equals_the_live_one_in_shape_grants_and_rows(
    name: str, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    projection = projections()[name]
    tables = [table.name for table in projection.tables]
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=16)
        await follow_all(pool)
        await owner_conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor")
        before = await (await owner_conn.execute(SHAPE, (tables,))).fetchall()

        report = await rebuild_here(database_url, projection)

        assert (report.drifted, report.generation) == (0, 2)
        assert report.rows_compared > 0
        assert report.stopped_s is not None
        assert await (await owner_conn.execute(SHAPE, (tables,))).fetchall() == before
        # Writers, followers and a second rebuild continue as if nothing had happened.
        await write_instances(store, count=8, start=16)
        await follow_all(pool)
        assert (await dry_run_here(database_url, projection)).drifted == 0


async def test_the_swap_of_an_inline_projection_changes_no_follower_and_no_other_projection(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    places = "SELECT follower, lane, seq FROM checkpoint ORDER BY follower, lane"
    states = (
        "SELECT name, generation, state FROM projection_generation WHERE name <> 'instance' ORDER BY name, generation"
    )
    before, others = [await (await owner_conn.execute(look)).fetchall() for look in (places, states)]

    await rebuild_here(database_url, InstanceProjection())

    assert any(seq > 0 for *_, seq in before)
    assert set(before) <= set(await (await owner_conn.execute(places)).fetchall())
    assert await (await owner_conn.execute(states)).fetchall() == others


async def test_a_rebuild_keeps_the_owner_of_a_table(database_url: str, owner_conn: psycopg.AsyncConnection) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=1)
    await owner_conn.execute("ALTER TABLE provision_log OWNER TO pg_database_owner")

    await rebuild_here(database_url, projections()["provision_log"])

    owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'provision_log'"
    assert await (await owner_conn.execute(owner)).fetchone() == ("pg_database_owner",)


async def test_a_swap_keeps_the_privileges_that_tables_and_columns_have_at_that_moment(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    may = """
        SELECT has_table_privilege('pg_monitor', 'instance', 'SELECT WITH GRANT OPTION'),
               has_table_privilege('pg_signal_backend', 'instance', 'SELECT'),
               has_column_privilege('pg_checkpoint', 'instance', 'status', 'SELECT'),
               has_column_privilege('pg_checkpoint', 'instance', 'id', 'SELECT')
    """

    def regrant(phase: str) -> None:
        if phase == "swapping":
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute("GRANT SELECT ON instance TO pg_monitor WITH GRANT OPTION")
                connection.execute("REVOKE SELECT ON instance FROM pg_signal_backend")

    await owner_conn.execute("GRANT SELECT ON instance TO pg_signal_backend")
    await owner_conn.execute("GRANT SELECT (status) ON instance TO pg_checkpoint")

    steps = QUIET._replace(phase=regrant)
    await rebuild(database_url, InstanceProjection(), folding=fold_here(database_url), callbacks=steps)
    assert await (await owner_conn.execute(may)).fetchone() == (True, False, True, False)

    await rollback(database_url, InstanceProjection())
    assert await (await owner_conn.execute(may)).fetchone() == (True, False, True, False)


async def test_autovacuum_is_off_for_a_build_until_it_is_live(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    options = "SELECT reloptions FROM pg_class WHERE relkind = 'r' AND relname = 'instance' ORDER BY relnamespace::regnamespace::text"
    build = await generations.begin(owner_conn, InstanceProjection())

    # Autovacuum would keep the swap from its lock, and gives way only to sessions that wait for long.
    during = await (await owner_conn.execute(options)).fetchall()
    assert during == [(["fillfactor=70", "autovacuum_enabled=off"],), (["fillfactor=70"],)], build.schema

    await rebuild_here(database_url, InstanceProjection())
    after = await (await owner_conn.execute(options)).fetchall()
    assert after == [(["fillfactor=70"],), (["fillfactor=70"],)]


async def test_a_rebuild_analyzes_the_columns_that_queries_search_by(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
    await rebuild_here(database_url, InstanceProjection())

    query = "SELECT attname FROM pg_stats WHERE schemaname = 'public' AND tablename = 'instance'"
    analyzed = {name for (name,) in await (await owner_conn.execute(query)).fetchall()}
    keys = {"lane", "id", "tenant_id", "customer_id", "idempotency_key", "created_at", "wake_at", "provider"}
    # The last two are in the conditions of partial indexes.
    assert analyzed == keys | {"pending_action_id", "status"}
