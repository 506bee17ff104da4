"""One connection for all concurrent users. When one is late, the others get another connection, and it is not cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from psycopg import AsyncConnection

from events import shared_connection
from events.exchange import Rows, Statement, exchange
from events.shared_connection import SharedConnection
from hydracore.db.pool import open_pool
from tests.pooler import needs_pooler, pooled
from tests.waiting import until

#: Waits for as long as another session holds the lock.
WAIT = Statement(b"SELECT pg_advisory_xact_lock_shared(1)", ())
LOCK = "SELECT pg_advisory_lock(1)"
UNLOCK = "SELECT pg_advisory_unlock(1)"
UNLOCKED: list[Rows] = [[(b"",)]]


@pytest.fixture(autouse=True)
def soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, "LATE_AFTER_S", 0.05)


@asynccontextmanager
async def sharing(database_url: str) -> AsyncGenerator[SharedConnection]:
    """A shared connection that is open already."""
    async with open_pool(database_url, role="", application="test", size=2) as pool:
        connection = SharedConnection(pool)
        await pid_of(connection)
        yield connection


async def wait(on: SharedConnection) -> list[Rows]:
    async with on.connection() as connection:
        return await exchange(connection, [WAIT], pipelined=True)


async def pid_of(on: SharedConnection) -> int:
    async with on.connection() as connection:
        return connection.info.backend_pid


async def test_a_late_user_keeps_its_connection_while_others_get_another_one(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    await owner_conn.execute(LOCK)
    async with sharing(database_url) as connection:
        its_pid = await pid_of(connection)
        alone = asyncio.create_task(wait(connection))
        await asyncio.sleep(0)

        async def got_another_connection() -> bool:
            return await pid_of(connection) != its_pid

        await until(got_another_connection)

        assert not alone.done()
        await owner_conn.execute(UNLOCK)
        assert await alone == UNLOCKED


async def test_concurrent_users_share_one_connection(database_url: str) -> None:
    async with sharing(database_url) as shared_one, shared_one.connection() as one, shared_one.connection() as other:
        assert one is other


@needs_pooler
async def test_behind_a_pooler_each_user_has_its_own_connection(database_url: str) -> None:
    async with (
        pooled(database_url, prepared=False) as url,
        open_pool(url, role="", application="test", size=2, prepared=False) as pool,
    ):
        shared_one = SharedConnection(pool)
        await pid_of(shared_one)

        async with shared_one.connection() as one, shared_one.connection() as other:
            assert one is not other
