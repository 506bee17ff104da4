"""A rebuild that catches up reads only what is new, however much there is: counted by PostgreSQL, in rows."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from bench.rebuild_log import write_log
from events.heads import read_heads
from projections import generations
from projections.drift import Scope, compare
from projections.refolding import KeptFolds, grown_streams
from projections.usage_daily import UsageDaily

NEW = 2
ROWS_READ = "SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_xact_user_tables WHERE relname = %s"

#: Rows of usage: one for each day of each instance.
INSTANCES, DAYS = 200, 20
USED = """
INSERT INTO {} (lane, instance_id, day, requests, prompt_tokens, completion_tokens, cost_usd)
SELECT i & 63, lpad(to_hex(i), 32, '0')::uuid, date '2026-11-01' + d, 1, 1, 1, 0
  FROM generate_series(1, %s) i, generate_series(0, %s - 1) d
"""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_finding_the_grown_streams_reads_only_new_events(
    database_url: str, owner_conn: psycopg.AsyncConnection, plans: str
) -> None:
    events = write_log(database_url, instances=500)
    await owner_conn.execute("VACUUM ANALYZE event")
    heads = await read_heads(owner_conn)
    await owner_conn.execute(f"SET plan_cache_mode = {plans}".encode())

    async with owner_conn.transaction():
        grown = await grown_streams(owner_conn, {lane: head - NEW for lane, head in heads.items()}, heads, KeptFolds())
        row = await (await owner_conn.execute(ROWS_READ, ("event",))).fetchone()

    assert row is not None
    assert len(grown) <= row[0] <= NEW * len(heads) < events / 10


async def test_comparing_a_followed_projection_reads_only_rows_of_changed_instances(
    owner_conn: psycopg.AsyncConnection,
) -> None:
    live = await generations.live_generation(owner_conn, "usage_daily")
    assert live is not None
    build = await generations.index(owner_conn, UsageDaily(), await generations.begin(owner_conn, UsageDaily()))
    for table in ("usage_daily", f"{build.schema}.usage_daily"):
        await owner_conn.execute(USED.format(table).encode(), (INSTANCES, DAYS))
        await owner_conn.execute(f"VACUUM ANALYZE {table}".encode())
    moved = {(number & 63, UUID(int=number)): 0 for number in (3, 67)}

    async with owner_conn.transaction():
        found = await compare(owner_conn, UsageDaily(), build, live, Scope(lanes={3}, streams=moved))
        row = await (await owner_conn.execute(ROWS_READ, ("usage_daily",))).fetchone()

    assert (found.rows, found.drifted) == (len(moved) * DAYS, 0)
    assert row == (2 * len(moved) * DAYS,), "on each side"
