"""A task that is cancelled stops, at whatever moment the cancellation comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.retries import with_retries
from hydracore.db.pool import open_pool
from tests.waiting import PATIENCE_S, until
from workers.head_watcher import wait_for_events

#: After so many turns of the event loop the cancellation comes. At the last, everything waited for here is done.
TURNS = range(12)


@pytest.fixture(name="pool")
async def pool_fixture(database_url: str) -> AsyncGenerator[AsyncConnectionPool]:
    """A pool of one connection."""
    async with open_pool(database_url, role="", application="test", size=1) as pool:
        yield pool


async def is_stopped(task: asyncio.Task[None], turns: int) -> bool:
    """Whether the task is ended by a cancellation so many turns from now, unless it was over before."""
    for _ in range(turns):
        await asyncio.sleep(0)
    asked = task.cancel()
    await asyncio.wait((task,), timeout=PATIENCE_S)
    return task.cancelled() or not asked


async def ask(connection: AsyncConnection) -> None:
    await connection.execute("SELECT 1")


async def test_a_task_that_is_cancelled_as_it_gets_its_connection_stops(pool: AsyncConnectionPool) -> None:
    for turns in TURNS:
        held = await pool.getconn()
        asking = asyncio.create_task(with_retries(pool, ask))
        await until(lambda: pool.get_stats()["requests_waiting"], poll_s=0)

        await pool.putconn(held)

        assert await is_stopped(asking, turns), turns


async def test_a_task_that_is_cancelled_while_connections_are_checked_stops(pool: AsyncConnectionPool) -> None:
    for turns in TURNS:
        tried = asyncio.Event()

        async def ask_in_vain(connection: AsyncConnection, tried: asyncio.Event = tried) -> None:
            if tried.is_set():
                return await ask(connection)
            tried.set()
            raise psycopg.OperationalError

        asking = asyncio.create_task(with_retries(pool, ask_in_vain))

        await tried.wait()

        assert await is_stopped(asking, turns), turns


async def test_a_cancelled_task_may_still_use_the_database_to_clean_up(pool: AsyncConnectionPool) -> None:
    tidied = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await with_retries(pool, ask)
            tidied.append(True)

    working = asyncio.create_task(work())
    await asyncio.sleep(0)

    assert await is_stopped(working, turns=0)

    assert tidied


async def test_a_follower_that_is_cancelled_as_events_arrive_stops() -> None:
    for turns in TURNS:
        moved = asyncio.Event()
        resting = asyncio.create_task(wait_for_events(moved))
        await asyncio.sleep(0)

        moved.set()

        assert await is_stopped(resting, turns), turns
