"""Appends to lanes that another transaction keeps locked: how they are tried, and how they end."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from events import committer, locked_lanes
from events.errors import Rejected, ReservationTaken, StoreUnavailable
from events.record import Outcome
from tests import lifecycle
from tests.locked_lanes import (
    UNLOCKED_LANE,
    WAITING_SESSIONS,
    LaneCustomers,
    count_rows,
    has_rows,
    is_treated_as_locked,
    lock_lanes,
)
from tests.log_check import check_log
from tests.services import Services
from tests.store_commands import open_store, origin
from tests.waiting import until

#: Longer than any test.
LONG_S = 600.0

#: Sessions that wait for longer than the limit that tests begin with: they began after the test set another.
WAITING_LONG = f"{WAITING_SESSIONS} AND query_start < clock_timestamp() - interval '0.5 s'"


@pytest.fixture
def customers() -> LaneCustomers:
    return LaneCustomers()


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush waits for locks for a short time, until a test sets another limit."""
    monkeypatch.setattr(committer, "LOCK_S_MAX", 0.3)
    monkeypatch.setattr(committer, "RETRY_S_MAX", LONG_S)
    monkeypatch.setattr("events.batch.TRANSACTION_S_MAX", LONG_S)


async def test_an_outage_refuses_all_appends_that_wait_for_locked_lanes(
    *,
    services: Services,
    database_url: str,
    owner_conn: AsyncConnection,
    customers: LaneCustomers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 1.0)
    lanes = range(6)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, lanes):
        waiting = [customers.start_create(store, lane) for lane in lanes]
        await until(lambda: all(is_treated_as_locked(store, lane) for lane in lanes))

        await refuse_connections(services, database_url)
        answers = await asyncio.gather(*waiting, return_exceptions=True)

        assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert (await check_log(owner_conn)).versions == {}


async def test_an_outage_refuses_all_appends_that_wait_for_a_flush(
    *,
    services: Services,
    database_url: str,
    owner_conn: AsyncConnection,
    customers: LaneCustomers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 1.0)
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]):
        # One flush, which fails as a whole. Of its appends the last is tried first, and waits.
        odd = store.create(
            lifecycle.instance_id("odd"), lifecycle.request(customer_id="odd", agent_name="\ud800"), origin()
        )
        waiting = [asyncio.create_task(odd), *(customers.start_create(store, lane) for lane in (UNLOCKED_LANE, 1))]
        await until(lambda: has_rows(owner_conn, WAITING_SESSIONS))
        gone = customers.start_create(store, UNLOCKED_LANE)
        waiting.append(customers.start_create(store, UNLOCKED_LANE))
        await until(lambda: len(store._committer._queue) == 2)
        gone.cancel()
        assert len(store._committer._isolated) == 2
        # No append that is tried after that gives up.
        monkeypatch.setattr(committer, "RETRY_S_MAX", LONG_S)

        await refuse_connections(services, database_url)
        await until(lambda: all(task.done() for task in waiting))

        assert {type(task.exception()) for task in waiting} == {StoreUnavailable}
    assert (await check_log(owner_conn)).versions == {}


async def refuse_connections(services: Services, database_url: str) -> None:
    """Refuse new connections to the database, and end those of stores."""
    name = str(conninfo_to_dict(database_url)["dbname"])
    async with await AsyncConnection.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        await connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'test'",
            (name,),
        )


async def test_appends_to_locked_lanes_use_at_most_half_of_the_connections(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = range(8)
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, lanes) as holder:
        stuck = [customers.start_create(store, lane) for lane in lanes]
        await until(lambda: all(is_treated_as_locked(store, lane) for lane in lanes))
        # From now on no append that is tried gives its connection back.
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: at_least(owner_conn, WAITING_LONG, pool.max_size // 2))

        async with pool.connection(), pool.connection():
            assert await count_rows(owner_conn, WAITING_SESSIONS) == pool.max_size // 2

        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_appends_to_a_free_lane_pass_two_flushes_that_wait_for_locks(
    database_url: str, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No waiting append gives up.
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1, 2]) as holder:
        flushing = store._committer
        stuck = [customers.start_create(store, 1)]
        await until(lambda: flushing._lanes_in_flight)
        stuck.append(customers.start_create(store, 2))
        await until(lambda: len(flushing._lanes_in_flight) == len(stuck))

        await until(customers.start_create(store, UNLOCKED_LANE).done)

        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)
        await until(lambda: not flushing._flushers)
        assert not flushing._late


async def test_late_flushes_count_towards_the_limit_of_concurrent_flushes(
    database_url: str, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    lanes = range(committer.FLUSHES_MAX)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, lanes) as holder:
        flushing, asked = store._committer, list[asyncio.Task[Outcome]]()
        for lane in lanes:
            asked.append(customers.start_create(store, lane))
            await until(lambda: len(flushing._lanes_in_flight) == len(asked))
        await until(lambda: len(flushing._late) == len(lanes))

        asked.append(customers.start_create(store, UNLOCKED_LANE))
        await asyncio.sleep(0)

        assert len(flushing._flushers) == len(lanes)
        await holder.rollback()
        await asyncio.gather(*asked)


async def waits_on_another_connection(connection: AsyncConnection, pool: AsyncConnectionPool, *, borrowed: int) -> bool:
    """Whether an append waits for a lane on another connection, the last of this many that were borrowed."""
    return pool.get_stats().get("requests_num", 0) >= borrowed and await has_rows(connection, WAITING_SESSIONS)


async def at_least(connection: AsyncConnection, statement: str, least: int) -> bool:
    return await count_rows(connection, statement) >= least


async def test_an_append_to_a_lane_known_to_be_locked_waits_outside_the_flushes(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1]) as holder:
        stuck = [customers.start_create(store, 1)]
        await until(lambda: waits_on_another_connection(owner_conn, pool, borrowed=2))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        stuck.append(customers.start_create(store, 1))

        await until(lambda: is_treated_as_locked(store, 1))

        # No flush includes that lane any more.
        await until(lambda: not store._committer._flushers)
        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_an_append_that_is_tried_alone_and_finds_its_lane_locked_waits_outside_the_flushes(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1]) as holder:
        # One flush, which fails as a whole: each of its appends is then tried alone.
        odd = store.create(
            lifecycle.instance_id("odd"), lifecycle.request(customer_id="odd", agent_name="\ud800"), origin()
        )
        refused = asyncio.create_task(odd)
        stuck = [customers.start_create(store, 1) for _ in range(3)]
        await until(lambda: waits_on_another_connection(owner_conn, pool, borrowed=3))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)

        await until(lambda: is_treated_as_locked(store, 1))

        # No flush includes that lane any more.
        await until(refused.done)
        assert isinstance(refused.exception(), Rejected)
        await until(customers.start_create(store, UNLOCKED_LANE).done)
        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_appends_that_wait_for_locked_lanes_count_towards_the_limit_of_the_queue(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        stuck = [customers.start_create(store, 1)]
        await until(lambda: is_treated_as_locked(store, 1))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: has_rows(owner_conn, WAITING_LONG))
        stuck += [customers.start_create(store, 1) for _ in range(3)]
        await until(lambda: len(store._committer._locked) == 3)
        monkeypatch.setattr(committer, "QUEUE_MAX", 3)

        with pytest.raises(StoreUnavailable, match="Too many appends are waiting"):
            await customers.create(store, UNLOCKED_LANE)

        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_an_append_that_waited_too_long_is_refused_once_an_attempt_for_any_lane_ends(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1, 2]) as holder:
        stuck = customers.start_create(store, 1)
        await until(lambda: waits_on_another_connection(owner_conn, pool, borrowed=2))
        with monkeypatch.context() as for_long:
            for_long.setattr(committer, "LOCK_S_MAX", LONG_S)
            # Its lane is being tried, so an append that waits for it now is tried next.
            await until(lambda: has_rows(owner_conn, WAITING_LONG))
            assert not len(store._committer._locked)
            for_long.setattr(committer, "RETRY_S_MAX", 0.0)
            impatient = customers.start_create(store, 1)
            await until(lambda: len(store._committer._locked))

        also_stuck = customers.start_create(store, 2)
        await until(impatient.done)

        assert str(impatient.exception()) == locked_lanes.LANE_LOCKED
        assert not stuck.done()
        await holder.rollback()
        await asyncio.gather(stuck, also_stuck)


async def test_appends_released_from_a_locked_lane_do_not_displace_a_queued_append(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        asked = [customers.start_create(store, 1)]
        await until(lambda: is_treated_as_locked(store, 1))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: has_rows(owner_conn, WAITING_LONG))
        asked.append(customers.start_create(store, 1))
        async with lock_lanes(database_url, [2]) as other_holder:
            # The only flush that is allowed waits, and another append waits for that flush.
            asked.append(customers.start_create(store, 2))
            await until(lambda: store._committer._lanes_in_flight)
            asked.append(customers.start_create(store, UNLOCKED_LANE))
            await until(lambda: store._committer._queue)

            await holder.rollback()
            await until(asked[0].done)

            await other_holder.rollback()
            await until(lambda: all(task.done() for task in asked))
        await asyncio.gather(*asked)


@pytest.mark.parametrize("refused_count", [1, 2], ids=["one", "two of one flush"])
async def test_a_lane_no_longer_counts_as_locked_once_the_log_has_refused_its_waiting_appends(
    *, database_url: str, customers: LaneCustomers, refused_count: int
) -> None:
    async with open_store(database_url) as (store, _):
        first, *others = [(await customers.create(store, 1)).state.id for _ in range(1 + refused_count)]
        await store.execute(first, lifecycle.plan(), origin())
        async with lock_lanes(database_url, [1]) as holder:
            planning = [asyncio.create_task(store.execute(one, lifecycle.plan(), origin())) for one in others]
            await until(lambda: is_treated_as_locked(store, 1))
            await holder.rollback()
            answers = await asyncio.gather(*planning, return_exceptions=True)

        assert [type(answer) for answer in answers] == [ReservationTaken] * refused_count
        assert not is_treated_as_locked(store, 1)
