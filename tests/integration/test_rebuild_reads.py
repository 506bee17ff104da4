"""What a step towards the live tables reads of the log, by the rows that PostgreSQL counts: what is new, however long the log is."""

from __future__ import annotations

import psycopg
import pytest

from bench.rebuild_log import write_log
from projections.catching_up import read_heads
from projections.refolding import KeptFolds, grown_streams

NEW = 2
ROWS_READ = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'event'"


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_which_streams_have_grown_is_seen_from_what_is_new(
    database_url: str, owner_conn: psycopg.AsyncConnection, plans: str
) -> None:
    events = write_log(database_url, instances=500)
    await owner_conn.execute("VACUUM ANALYZE event")
    heads = await read_heads(owner_conn)
    await owner_conn.execute(f"SET plan_cache_mode = {plans}".encode())

    async with owner_conn.transaction():
        grown = await grown_streams(owner_conn, {lane: head - NEW for lane, head in heads.items()}, heads, KeptFolds())
        row = await (await owner_conn.execute(ROWS_READ)).fetchone()

    assert row is not None
    assert len(grown) <= row[0] <= NEW * len(heads) < events / 10
