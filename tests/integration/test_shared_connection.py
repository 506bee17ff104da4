"""One connection for all who are at work: whoever is late is passed by, and never cancelled."""

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

#: Waits for as long as somebody else has the lock.
WAIT = Statement(b"SELECT pg_advisory_xact_lock_shared(1)", ())
LOCK = "SELECT pg_advisory_lock(1)"
UNLOCK = "SELECT pg_advisory_unlock(1)"
UNLOCKED: list[Rows] = [[(b"",)]]


@pytest.fixture(autouse=True)
def soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, "LATE_AFTER_S", 0.05)


@asynccontextmanager
async def sharing(database_url: str) -> AsyncGenerator[SharedConnection]:
    """One that knows its connection already."""
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


async def test_one_that_is_late_is_passed_by_and_not_cancelled(database_url: str, owner_conn: AsyncConnection) -> None:
    await owner_conn.execute(LOCK)
    async with sharing(database_url) as connection:
        its_pid = await pid_of(connection)
        alone = asyncio.create_task(wait(connection))
        await asyncio.sleep(0)

        async def passed_by() -> bool:
            return await pid_of(connection) != its_pid

        await until(passed_by)

        assert not alone.done()
        await owner_conn.execute(UNLOCK)
        assert await alone == UNLOCKED


async def test_whoever_comes_meanwhile_is_on_the_same_connection(database_url: str) -> None:
    async with sharing(database_url) as shared_one, shared_one.connection() as one, shared_one.connection() as other:
        assert one is other


@needs_pooler
async def test_behind_a_pooler_everybody_has_a_connection_of_their_own(database_url: str) -> None:
    async with (
        pooled(database_url, prepared=False) as url,
        open_pool(url, role="", application="test", size=2, prepared=False) as pool,
    ):
        shared_one = SharedConnection(pool)
        await pid_of(shared_one)

        async with shared_one.connection() as one, shared_one.connection() as other:
            assert one is not other
