"""Work on a database that restarts, and on a pool that is closed."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from psycopg import AsyncConnection

from events.errors import StoreUnavailable
from events.patience import patiently, run
from hydracore.db.pool import open_pool

SIZE = 4


async def test_a_restart_costs_one_try_and_not_one_for_each_connection(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    tries = 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal tries
        tries += 1
        await connection.execute("SELECT 1")

    async with open_pool(database_url, role="", application="patience", size=SIZE) as pool:
        async with AsyncExitStack() as borrowed:
            for _ in range(SIZE):
                await borrowed.enter_async_context(pool.connection())
        ended = (
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'patience'"
        )
        assert await (await owner_conn.execute(ended)).fetchone() == (SIZE,)

        await patiently(pool, work)

    assert tries == 2


async def test_nobody_waits_for_a_pool_that_was_closed(database_url: str) -> None:
    async with open_pool(database_url, role="", application="patience", size=1) as pool:
        pass

    with pytest.raises(StoreUnavailable, match="this process is stopping"):
        await run(pool, b"SELECT 1")
