"""Work on a database that restarts, and on a pool that is closed."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo
from psycopg_pool.base import AttemptWithBackoff

from events.errors import StoreUnavailable
from events.retries import RETRY_S_MAX, run, with_retries
from hydracore.db import pool as pool_module
from hydracore.db.pool import open_pool

SIZE = 4

ENDED = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'patience'"


async def look(connection: AsyncConnection) -> None:
    await connection.execute("SELECT 1")


async def test_a_restart_costs_one_failed_attempt_and_not_one_for_each_connection(
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
        assert await (await owner_conn.execute(ENDED)).fetchone() == (SIZE,)

        await with_retries(pool, work)

    assert tries == 2


async def test_a_database_that_was_away_for_long_is_used_again_as_soon_as_it_is_back(
    database_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool waits ever longer between its attempts, and would wait as long again. Here all times are a tenth."""
    monkeypatch.setattr(pool_module, "BORROW_TIMEOUT_S", RETRY_S_MAX / 10)
    monkeypatch.setattr(AttemptWithBackoff, "INITIAL_DELAY", AttemptWithBackoff.INITIAL_DELAY / 10)
    admit = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    name = sql.Identifier(owner_conn.info.dbname)
    elsewhere = make_conninfo(database_url, dbname="postgres")
    async with (
        open_pool(database_url, role="", application="patience", size=1) as pool,
        await AsyncConnection.connect(elsewhere, autocommit=True) as operator,
    ):
        await operator.execute(admit.format(name, sql.SQL("false")))
        await operator.execute(ENDED)
        # As many attempts as an idle pool makes in half a minute.
        while pool.get_stats().get("connections_errors", 0) < 6:
            with suppress(StoreUnavailable):
                await with_retries(pool, look, retry_s_max=RETRY_S_MAX / 10)

        await operator.execute(admit.format(name, sql.SQL("true")))

        await with_retries(pool, look, retry_s_max=RETRY_S_MAX / 10)


async def test_work_on_a_closed_pool_is_refused(database_url: str) -> None:
    async with open_pool(database_url, role="", application="patience", size=1) as pool:
        pass

    with pytest.raises(StoreUnavailable, match="this process is stopping"):
        await run(pool, b"SELECT 1")
