"""One connection for all who are at work: whoever is late is passed by, and cancelled only for somebody's sake."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events import shared
from events.exchange import Rows, Statement, exchange
from events.shared import SharedConnection
from hydracore.db.pool import open_pool
from tests.pooler import needs_pooler, pooled
from tests.services import OwnServices
from tests.waiting import until

#: Waits for as long as somebody else has the lock.
WAIT = Statement(b"SELECT pg_advisory_xact_lock_shared(1)", ())
LOCK = "SELECT pg_advisory_lock(1)"
UNLOCK = "SELECT pg_advisory_unlock(1)"
UNLOCKED: list[Rows] = [[(b"",)]]


@pytest.fixture(autouse=True)
def soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LATE_S", 0.05)
    monkeypatch.setattr(shared, "_CANCEL_S_MAX", 0.2)


@asynccontextmanager
async def sharing(database_url: str) -> AsyncGenerator[SharedConnection]:
    """One that knows its connection already."""
    async with open_pool(database_url, role="", application="test", size=2) as pool:
        connection = SharedConnection(pool)
        await pid_of(connection)
        yield connection


async def wait(on: SharedConnection) -> list[Rows]:
    async with on.connection() as connection:
        return await exchange(connection, [WAIT], follow=True)


async def pid_of(on: SharedConnection) -> int:
    async with on.connection() as connection:
        return connection.info.backend_pid


async def test_one_that_nobody_is_behind_is_passed_by_and_not_cancelled(
    database_url: str, owner_conn: AsyncConnection
) -> None:
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


async def test_one_that_others_are_behind_is_cancelled_for_them(database_url: str, owner_conn: AsyncConnection) -> None:
    await owner_conn.execute(LOCK)
    async with sharing(database_url) as connection:
        first, second = (asyncio.create_task(wait(connection)) for _ in range(2))

        with pytest.raises(psycopg.errors.QueryCanceled):
            await first

        assert not second.done(), "nobody is behind it"
        await owner_conn.execute(UNLOCK)
        assert await second == UNLOCKED


@contextmanager
def frozen(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_connection_whose_cancel_may_still_come_is_given_to_nobody(own_services: OwnServices) -> None:
    (postmaster,) = own_services.supervisor.pids()["postgres"]
    async with (
        await AsyncConnection.connect(own_services.database_url, autocommit=True) as holder,
        sharing(own_services.database_url) as connection,
    ):
        await holder.execute(LOCK)
        its_pid = await pid_of(connection)
        # Its sessions go on, and it takes no new connections, on which a cancel comes.
        with frozen(postmaster):
            waiting = [asyncio.create_task(wait(connection)) for _ in range(2)]
            given_up = await asyncio.gather(*waiting, return_exceptions=True)

        assert [isinstance(error, psycopg.OperationalError) for error in given_up] == [True, True]
        assert await pid_of(connection) != its_pid


async def test_a_connection_is_given_back_once_its_cancel_has_come(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_CANCEL_S_MAX", 10)
    (postmaster,) = own_services.supervisor.pids()["postgres"]
    async with (
        await AsyncConnection.connect(own_services.database_url, autocommit=True) as holder,
        open_pool(own_services.database_url, role="", application="test", size=2) as pool,
    ):
        connection = SharedConnection(pool)
        await pid_of(connection)
        await holder.execute(LOCK)
        with frozen(postmaster):
            waiting = [asyncio.create_task(wait(connection)) for _ in range(2)]
            await until(lambda: connection._cancelling)
            await holder.execute(UNLOCK)

            assert await asyncio.gather(*waiting) == [UNLOCKED, UNLOCKED]
            assert idle(pool) == 0
        await until(lambda: idle(pool) == 1)


def idle(pool: AsyncConnectionPool) -> int:
    return pool.get_stats()["pool_available"]


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
