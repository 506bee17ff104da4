"""What a sweep costs among thousands of deleted instances, by the rows that PostgreSQL counts as read for it."""

from __future__ import annotations

import psycopg
import pytest

from tests.orphan_servers import create_orphan_of, other_installation
from tests.stack import Stack
from workers.deps import Deps
from workers.providers.hetzner import HetznerProvider
from workers.sweep import sweep

DELETED_COUNT, LIVE_COUNT = 2_000, 20
FILL = """
INSERT INTO instance (lane, id, version, tenant_id, customer_id, idempotency_key, status, provisioning_stage, region_id, provider, server_id,
                      tier_id, preset_id, runtime_type, workload_type, capabilities, attempt, created_at, updated_at)
SELECT get_byte(uuid_send(i.id), 15) & 63, i.id, 1, 'acme', 'ada', 'key-' || i.n,
       CASE WHEN i.n < %(live)s THEN 'error' ELSE 'deleted' END, 'ready', 'local', 'cloudsim', 'server-' || i.n,
       'starter', 'p', 'expressclaw', 'agent', '{}', 1, now(), now()
  FROM (SELECT n, md5('instance ' || n)::uuid AS id FROM generate_series(0, %(live)s + %(deleted)s - 1) n) i
"""
LAST = "SELECT id FROM instance WHERE status = 'deleted' LIMIT 1"

#: Makes PostgreSQL publish its counts at the end of the next transaction.
TELL = "SELECT pg_stat_force_next_flush()"
ROWS_READ = """
SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'instance')
       + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'instance')
"""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_a_sweep_reads_only_those_deleted_instances_that_labels_of_servers_name(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection, plans: str
) -> None:
    ours = other_installation()
    await owner_conn.execute(FILL, {"live": LIVE_COUNT, "deleted": DELETED_COUNT})
    await owner_conn.execute("VACUUM ANALYZE instance")
    row = await (await owner_conn.execute(LAST)).fetchone()
    assert row is not None
    server_id = await create_orphan_of(provider, row[0], **ours)
    url = f"{database_url}?options=-cplan_cache_mode%3D{plans}"

    async with stack.deps(database_url=url, installation=ours["hc-installation"]) as deps:
        before = await counted(deps, owner_conn)
        swept = await sweep(deps, dry_run=True)
        read = await counted(deps, owner_conn) - before

    assert [(one.kind, one.server_id, one.instance_id) for one in swept.findings] == [("orphan", server_id, row[0])]
    # Three statements read all instances that are not deleted.
    assert LIVE_COUNT <= read <= 3 * LIVE_COUNT + 5
    await provider.delete_server(server_id)


async def counted(deps: Deps, owner_conn: psycopg.AsyncConnection) -> int:
    async with deps.pool.connection() as connection:
        await connection.execute(TELL)
        await connection.execute("SELECT")
    row = await (await owner_conn.execute(ROWS_READ)).fetchone()
    assert row is not None
    return int(row[0])
