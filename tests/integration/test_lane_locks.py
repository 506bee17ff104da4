"""Which appends wait for a lane, and what they see afterwards: the lane as the appends before them left it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

import pytest
from psycopg import AsyncConnection, sql

from events import committer
from events.errors import StoreUnavailable
from events.record import Outcome
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.inline import inline_projections
from tests.locked_lanes import UNLOCKED_LANE, WAITING_SESSIONS, LaneCustomers, count_rows, has_rows, lock_lanes
from tests.log_check import check_log
from tests.store_commands import open_store
from tests.waiting import POLL_S, until

LANE = 1

END_WAITING = WAITING_SESSIONS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)")


@pytest.fixture
def customers() -> LaneCustomers:
    return LaneCustomers()


async def test_an_append_does_not_wait_for_a_locked_lane_other_than_its_own(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers
) -> None:
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [LANE]) as holder:
        waiting = [customers.start_create(store, LANE)]
        await until(lambda: has_rows(owner_conn, WAITING_SESSIONS))
        waiting.append(customers.start_create(store, LANE))

        await customers.create(store, UNLOCKED_LANE)

        assert not any(task.done() for task in waiting)
        await holder.rollback()
        await asyncio.gather(*waiting)
    assert len((await check_log(owner_conn)).versions) == 3


async def test_two_locked_lanes_do_not_delay_appends_to_other_lanes_for_long(
    database_url: str, customers: LaneCustomers
) -> None:
    lanes = itertools.cycle(range(3, 32))
    async with open_store(database_url) as (store, _), AsyncExitStack() as held:
        created: list[asyncio.Task[Outcome]] = []
        for lane in (1, 2):
            await held.enter_async_context(lock_lanes(database_url, [lane]))
            created.append(customers.start_create(store, lane))
            # Appends that share its flush are stuck as well, and so are their lanes.
            others: list[asyncio.Task[Outcome]] = []
            while not any(task.done() for task in others):
                others.append(customers.start_create(store, next(lanes)))
                await asyncio.wait(others, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            created += others
        await asyncio.gather(*(customers.create(store, 32 + number % 32) for number in range(50)))

        await held.aclose()
        await asyncio.gather(*created)


async def test_giving_up_a_locked_lane_causes_no_append_to_other_lanes_to_be_refused(
    database_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 2.0)
    customers = LaneCustomers(60_000)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [LANE]):

        async def write(lane: int) -> None:
            while not stuck.done():
                await customers.create(store, lane)

        stuck = customers.start_create(store, LANE)
        await until(lambda: has_rows(owner_conn, WAITING_SESSIONS))
        writing = [asyncio.create_task(write(lane)) for lane in range(2, 64) for _ in range(4)]
        while not stuck.done():
            await count_rows(owner_conn, END_WAITING)
            await asyncio.wait([stuck], timeout=POLL_S)

        assert isinstance(stuck.exception(), StoreUnavailable)
        await asyncio.gather(*writing)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_appends_that_waited_for_one_lane_are_all_applied_at_any_default_isolation_level(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, isolation: str
) -> None:
    await isolate(owner_conn, isolation)
    async with open_store(database_url) as (store, _), open_store(database_url) as (other_store, _):
        answers = await both_waiting(database_url, owner_conn, customers, (store, other_store))

    assert [type(answer) for answer in answers] == [Outcome, Outcome]
    assert len((await check_log(owner_conn)).versions) == 2


async def test_an_append_whose_snapshot_lacks_an_earlier_append_is_refused_and_may_be_retried(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers
) -> None:
    await isolate(owner_conn, "repeatable read")
    # With a role, sessions are set to read committed.
    async with (
        open_pool(database_url, role="", application="test", size=2) as pool,
        open_pool(database_url, role="", application="test", size=2) as other_pool,
    ):
        stores = tuple(EventStore(each, inline=inline_projections()) for each in (pool, other_pool))
        answers = await both_waiting(database_url, owner_conn, customers, stores)
        for store in stores:
            await store.close()

    assert {type(answer) for answer in answers} == {Outcome, StoreUnavailable}
    assert len((await check_log(owner_conn)).versions) == 1


async def isolate(connection: AsyncConnection, isolation: str) -> None:
    """Set the default isolation level of this database."""
    alter = sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}")
    await connection.execute(alter.format(sql.Identifier(connection.info.dbname), sql.Literal(isolation)))


async def both_waiting(
    database_url: str, looker: AsyncConnection, customers: LaneCustomers, stores: tuple[EventStore, ...]
) -> list[Outcome | BaseException]:
    """The results of two appends that have waited for one lane at once."""

    async def all_wait() -> bool:
        return await count_rows(looker, WAITING_SESSIONS) == len(stores)

    async with lock_lanes(database_url, [LANE]) as holder:
        waiting = asyncio.gather(*(customers.start_create(store, LANE) for store in stores), return_exceptions=True)
        await until(all_wait)
        await holder.rollback()
        return await waiting
