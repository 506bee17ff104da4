"""What a read of instances costs among thousands of deleted ones, by the rows that PostgreSQL counts as read for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any, LiteralString
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from events.lifecycle import Status
from hydracore.db.pool import open_pool
from projections.queries import ListedKey, ListFilter, Queries, listed_keys
from tests.services import Services

DELETED_COUNT = 2_000
#: In two tenants, of two customers each.
LIVE_COUNT = 100

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
#: So many instances have the same time of creation, and pages begin among them.
TIED_COUNT = 17
FILL = """
INSERT INTO instance (lane, id, version, tenant_id, customer_id, idempotency_key, status, provisioning_stage, region_id,
                      tier_id, preset_id, runtime_type, workload_type, capabilities, attempt, created_at, updated_at)
SELECT get_byte(uuid_send(i.id), 15) & 63, i.id, 1, 'tenant-' || i.n %% 2, 'customer-' || i.n / 2 %% 2, 'key-' || i.n,
       CASE WHEN i.n >= %(live)s THEN 'deleted' WHEN i.n < %(live)s / 2 THEN 'running' ELSE 'failed' END, 'ready', 'local',
       'starter', 'p', 'expressclaw', 'agent', '{}', 1, %(beginning)s + i.n / %(tied)s * interval '1 minute', now()
  FROM (SELECT n, md5('instance ' || n)::uuid AS id FROM generate_series(0, %(all)s - 1) n) i
"""

#: After this, the counters of a session are published at the end of its next transaction.
PUBLISH_COUNTERS = "SELECT pg_stat_force_next_flush()"
ROWS_READ = """
SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'instance')
       + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'instance')
"""
PAGES_OF_KEYS = """
SELECT idx_blks_read + idx_blks_hit FROM pg_statio_user_indexes WHERE indexrelname = 'instance_by_key'
"""
#: A lookup in an index of so few rows reads its root and a leaf.
PAGES_MAX = 4

SCOPES: dict[str, tuple[str | None, str | None]] = {
    "customer": ("tenant-1", "customer-0"),
    "tenant": ("tenant-1", None),
    "everybody": (None, None),
}


PLANS = ("force_custom_plan", "force_generic_plan")

_serial = itertools.count(1)


@contextmanager
def filled_database(services: Services) -> Generator[str]:
    """A database with many deleted instances, and live ones that are older; its URL."""
    name = f"filled_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_serial)}"
    url = services.create_database(name)
    with psycopg.connect(url, autocommit=True) as connection:
        given = {"live": LIVE_COUNT, "all": LIVE_COUNT + DELETED_COUNT, "beginning": BEGINNING, "tied": TIED_COUNT}
        connection.execute(FILL, given)
        connection.execute("VACUUM ANALYZE instance")
    yield url
    services.drop_database(name)


@pytest.fixture(name="database_url", scope="module")
def database_url_fixture(services: Services) -> Generator[str]:
    """Filled once, for all tests that only read it."""
    with filled_database(services) as url:
        yield url


@asynccontextmanager
async def planning(url: str, plans: str) -> AsyncGenerator[AsyncConnectionPool]:
    """A pool of one connection with this kind of plans."""
    url = make_conninfo(url, options=f"-c plan_cache_mode={plans}")
    async with open_pool(url, role="hydracore_app", application="test", size=1) as pool:
        yield pool
        # So that its counters are not published while another test counts.
        await publish_counters(pool)


@pytest.fixture(name="pool", params=PLANS)
async def pool_fixture(request: pytest.FixtureRequest, database_url: str) -> AsyncGenerator[AsyncConnectionPool]:
    async with planning(database_url, request.param) as pool:
        yield pool


async def publish_counters(pool: AsyncConnectionPool) -> None:
    async with pool.connection() as connection:
        await connection.execute(PUBLISH_COUNTERS)
        await connection.execute("SELECT")


async def counted(
    pool: AsyncConnectionPool, owner_conn: psycopg.AsyncConnection, what: LiteralString = ROWS_READ
) -> int:
    await publish_counters(pool)
    row = await (await owner_conn.execute(what)).fetchone()
    assert row is not None
    return int(row[0])


async def numbers(owner_conn: psycopg.AsyncConnection, page: list[ListedKey]) -> list[int]:
    """The numbers by which these instances were made."""
    found = await owner_conn.execute(
        "SELECT w.n FROM unnest(%s::uuid[]) WITH ORDINALITY k (id, place)"
        "  JOIN (SELECT n, md5('instance ' || n)::uuid AS id FROM generate_series(0, %s) n) w ON w.id = k.id"
        " ORDER BY k.place",
        ([key.id for key in page], LIVE_COUNT + DELETED_COUNT),
    )
    return [number for (number,) in await found.fetchall()]


def place(n: int) -> tuple[datetime, UUID]:
    """The position of this number's instance in a list: its time, and its id, which orders instances of the same time."""
    made = BEGINNING + timedelta(minutes=n // TIED_COUNT)
    return made, UUID(md5(f"instance {n}".encode(), usedforsecurity=False).hexdigest())


def wanted_of(scope: str, **more: Any) -> ListFilter:
    tenant_id, customer_id = SCOPES[scope]
    return ListFilter(tenant_id=tenant_id, customer_id=customer_id, **more)


def of_scope(scope: str, count: int, before: tuple[datetime, UUID] | None = None) -> list[int]:
    """Which of the first so many instances are in a scope, newest first, after a position if any."""
    tenant_id, customer_id = SCOPES[scope]
    return [
        n
        for n in sorted(range(count), key=place, reverse=True)
        if tenant_id in {None, f"tenant-{n % 2}"} and customer_id in {None, f"customer-{n // 2 % 2}"}
        if before is None or place(n) < before
    ]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("status", [None, "failed"])
@pytest.mark.parametrize("after", [None, 70])
async def test_a_list_of_live_instances_reads_no_deleted_ones(
    pool: AsyncConnectionPool,
    owner_conn: psycopg.AsyncConnection,
    scope: str,
    status: Status | None,
    after: int | None,
) -> None:
    before = None if after is None else place(after)
    wanted = wanted_of(scope, status=status, before=before)
    read_before = await counted(pool, owner_conn)

    text = await Queries(pool).list_text(wanted)

    assert await counted(pool, owner_conn) - read_before <= LIVE_COUNT
    oldest = LIVE_COUNT // 2 if status else 0
    assert await numbers(owner_conn, listed_keys(text)) == [
        n for n in of_scope(scope, LIVE_COUNT, before) if n >= oldest
    ]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("status", "oldest"), [(None, 0), ("deleted", LIVE_COUNT)])
async def test_pages_with_deleted_instances_follow_each_other_without_gap_or_repeat(
    pool: AsyncConnectionPool, owner_conn: psycopg.AsyncConnection, scope: str, status: Status | None, oldest: int
) -> None:
    everything = [n for n in of_scope(scope, LIVE_COUNT + DELETED_COUNT) if n >= oldest]
    wanted = wanted_of(scope, status=status, include_deleted=True, limit=1 + len(everything) // 4)
    seen: list[int] = []

    while page := listed_keys(await Queries(pool).list_text(wanted)):
        seen += await numbers(owner_conn, page)
        wanted = msgspec.structs.replace(wanted, before=place(seen[-1]))

    assert seen == everything


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("status", [None, "deleted"])
# Where few rows are after a position, reading and sorting them all is as good a plan.
@pytest.mark.parametrize("after", [None, 2_000])
async def test_a_page_with_deleted_instances_reads_few_more_rows_than_it_has(
    pool: AsyncConnectionPool,
    owner_conn: psycopg.AsyncConnection,
    scope: str,
    status: Status | None,
    after: int | None,
) -> None:
    before = None if after is None else place(after)
    wanted = wanted_of(scope, status=status, include_deleted=True, before=before, limit=20)
    read_before = await counted(pool, owner_conn)

    text = await Queries(pool).list_text(wanted)

    assert await counted(pool, owner_conn) - read_before <= 4 * wanted.limit
    behind = of_scope(scope, LIVE_COUNT + DELETED_COUNT, wanted.before)
    assert await numbers(owner_conn, listed_keys(text)) == behind[: wanted.limit]


@pytest.mark.parametrize("plans", PLANS)
async def test_a_lookup_of_a_key_in_all_tenants_reads_few_index_pages_however_many_tenants_there_are(
    services: Services, plans: str
) -> None:
    with filled_database(services) as url:
        async with (
            await psycopg.AsyncConnection.connect(url, autocommit=True) as owner_conn,
            planning(url, plans) as pool,
        ):
            await owner_conn.execute("UPDATE instance SET tenant_id = 'tenant-' || id")
            await owner_conn.execute("VACUUM (FULL, ANALYZE) instance")
            queries = Queries(pool)

            async def pages_read() -> int:
                """How many pages of the index are read for a key that no instance has."""
                before = await counted(pool, owner_conn, PAGES_OF_KEYS)
                assert await queries.newest_by_key(tenant_id=None, idempotency_key="no-such-key") is None
                return await counted(pool, owner_conn, PAGES_OF_KEYS) - before

            # The first time includes the planning.
            await pages_read()
            assert await pages_read() <= PAGES_MAX
            assert await queries.newest_by_key(tenant_id=None, idempotency_key="key-1003") is not None
