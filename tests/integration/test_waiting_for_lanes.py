"""Those who wait for lanes that somebody keeps locked: how they are tried, and what becomes of them when something else happens."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from events import committer, locked_lanes
from events.errors import Rejected, ReservationTaken, StoreUnavailable
from events.record import Outcome
from tests import lives
from tests.holding import FREE, WAITING, Customers, count, counts_as_locked, lock_lanes, somebody
from tests.log_check import check_log
from tests.requests_to_log import open_store, origin
from tests.services import Services
from tests.waiting import until

#: Longer than any test.
LONG_S = 600.0

#: Who waits for longer than the limit that tests begin with, and so came after they have set another.
WAITING_LONG = f"{WAITING} AND query_start < clock_timestamp() - interval '0.5 s'"


@pytest.fixture
def customers() -> Customers:
    return Customers()


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a flush waits for locks is up to a test: until it says otherwise, not for long."""
    monkeypatch.setattr(committer, "LOCK_S_MAX", 0.3)
    monkeypatch.setattr(committer, "RETRY_S_MAX", LONG_S)
    monkeypatch.setattr("events.batch.TRANSACTION_S_MAX", LONG_S)


async def test_a_database_that_goes_away_is_told_to_all_who_wait_for_locked_lanes(
    *,
    services: Services,
    database_url: str,
    owner_conn: AsyncConnection,
    customers: Customers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 1.0)
    lanes = range(6)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, lanes):
        waiting = [customers.creating(store, lane) for lane in lanes]
        await until(lambda: all(counts_as_locked(store, lane) for lane in lanes))

        await take_away(services, database_url)
        answers = await asyncio.gather(*waiting, return_exceptions=True)

        assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert (await check_log(owner_conn)).versions == {}


async def test_a_database_that_goes_away_is_told_to_all_who_wait_for_a_flush(
    *,
    services: Services,
    database_url: str,
    owner_conn: AsyncConnection,
    customers: Customers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 1.0)
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]):
        # One flush, which fails as a whole; the last of it is tried first, and waits.
        odd = store.create(lives.instance_id("odd"), lives.request(customer_id="odd", agent_name="\ud800"), origin())
        waiting = [asyncio.create_task(odd), *(customers.creating(store, lane) for lane in (FREE, 1))]
        await until(lambda: somebody(owner_conn, WAITING))
        gone = customers.creating(store, FREE)
        waiting.append(customers.creating(store, FREE))
        await until(lambda: len(store._committer._queue) == 2)
        gone.cancel()
        assert len(store._committer._isolated) == 2
        # Nobody who is tried after that gives up.
        monkeypatch.setattr(committer, "RETRY_S_MAX", LONG_S)

        await take_away(services, database_url)
        await until(lambda: all(task.done() for task in waiting))

        assert {type(task.exception()) for task in waiting} == {StoreUnavailable}
    assert (await check_log(owner_conn)).versions == {}


async def take_away(services: Services, database_url: str) -> None:
    """Nobody gets into the database any more, and stores are thrown out of it."""
    name = str(conninfo_to_dict(database_url)["dbname"])
    async with await AsyncConnection.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        await connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'test'",
            (name,),
        )


async def test_however_many_lanes_are_tried_half_of_the_connections_are_for_others(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = range(8)
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, lanes) as holder:
        stuck = [customers.creating(store, lane) for lane in lanes]
        await until(lambda: all(counts_as_locked(store, lane) for lane in lanes))
        # From now on nobody who is tried gives a connection back.
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: as_many_as(owner_conn, WAITING_LONG, pool.max_size // 2))

        async with pool.connection(), pool.connection():
            assert await count(owner_conn, WAITING) == pool.max_size // 2

        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_those_behind_two_who_wait_for_locks_go_past_them(
    database_url: str, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever waits does not make way by giving up.
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1, 2]) as holder:
        flushing = store._committer
        stuck = [customers.creating(store, 1)]
        await until(lambda: flushing._lanes_in_flight)
        stuck.append(customers.creating(store, 2))
        await until(lambda: len(flushing._lanes_in_flight) == len(stuck))

        await until(customers.creating(store, FREE).done)

        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)
        await until(lambda: not flushing._flushers)
        assert not flushing._late


async def test_however_many_flushes_are_late_no_more_are_begun_than_there_may_be(
    database_url: str, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    lanes = range(committer.FLUSHES_MAX)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, lanes) as holder:
        flushing, asked = store._committer, list[asyncio.Task[Outcome]]()
        for lane in lanes:
            asked.append(customers.creating(store, lane))
            await until(lambda: len(flushing._lanes_in_flight) == len(asked))
        await until(lambda: len(flushing._late) == len(lanes))

        asked.append(customers.creating(store, FREE))
        await asyncio.sleep(0)

        assert len(flushing._flushers) == len(lanes)
        await holder.rollback()
        await asyncio.gather(*asked)


async def waits_apart(connection: AsyncConnection, pool: AsyncConnectionPool, *, borrowed: int) -> bool:
    """Whether somebody waits for a lane who has got another connection for it, the last of so many that were borrowed."""
    return pool.get_stats().get("requests_num", 0) >= borrowed and await somebody(connection, WAITING)


async def as_many_as(connection: AsyncConnection, statement: str, least: int) -> bool:
    return await count(connection, statement) >= least


async def test_whoever_comes_behind_one_that_is_not_let_in_waits_apart_with_it(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1]) as holder:
        stuck = [customers.creating(store, 1)]
        await until(lambda: waits_apart(owner_conn, pool, borrowed=2))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        stuck.append(customers.creating(store, 1))

        await until(lambda: counts_as_locked(store, 1))

        # Nothing flies for that lane any more.
        await until(lambda: not store._committer._flushers)
        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_whoever_is_tried_alone_for_a_lane_that_proves_to_be_locked_waits_apart(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1]) as holder:
        # One flush, which fails as a whole: each is to fly alone then.
        odd = store.create(lives.instance_id("odd"), lives.request(customer_id="odd", agent_name="\ud800"), origin())
        refused = asyncio.create_task(odd)
        stuck = [customers.creating(store, 1) for _ in range(3)]
        await until(lambda: waits_apart(owner_conn, pool, borrowed=3))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)

        await until(lambda: counts_as_locked(store, 1))

        # Nothing flies for that lane any more.
        await until(refused.done)
        assert isinstance(refused.exception(), Rejected)
        await until(customers.creating(store, FREE).done)
        assert not any(task.done() for task in stuck)
        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_those_who_wait_for_locked_lanes_are_among_as_many_as_may_wait(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        stuck = [customers.creating(store, 1)]
        await until(lambda: counts_as_locked(store, 1))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: somebody(owner_conn, WAITING_LONG))
        stuck += [customers.creating(store, 1) for _ in range(3)]
        await until(lambda: len(store._committer._locked) == 3)
        monkeypatch.setattr(committer, "QUEUE_MAX", 3)

        with pytest.raises(StoreUnavailable, match="Too many appends are waiting"):
            await customers.create(store, FREE)

        await holder.rollback()
        await asyncio.gather(*stuck)


async def test_whoever_has_waited_long_enough_is_refused_though_it_is_another_lane_that_was_tried(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, [1, 2]) as holder:
        stuck = customers.creating(store, 1)
        await until(lambda: waits_apart(owner_conn, pool, borrowed=2))
        with monkeypatch.context() as for_long:
            for_long.setattr(committer, "LOCK_S_MAX", LONG_S)
            # Its lane is being tried, so that whoever waits for it now is the next one.
            await until(lambda: somebody(owner_conn, WAITING_LONG))
            assert not len(store._committer._locked)
            for_long.setattr(committer, "RETRY_S_MAX", 0.0)
            impatient = customers.creating(store, 1)
            await until(lambda: len(store._committer._locked))

        also_stuck = customers.creating(store, 2)
        await until(impatient.done)

        assert str(impatient.exception()) == locked_lanes.LANE_LOCKED
        assert not stuck.done()
        await holder.rollback()
        await asyncio.gather(stuck, also_stuck)


async def test_those_who_waited_for_a_lane_take_nobodys_place_once_they_are_let_in(
    database_url: str, owner_conn: AsyncConnection, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "FLUSHES_MAX", 1)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        asked = [customers.creating(store, 1)]
        await until(lambda: counts_as_locked(store, 1))
        monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
        await until(lambda: somebody(owner_conn, WAITING_LONG))
        asked.append(customers.creating(store, 1))
        async with lock_lanes(database_url, [2]) as other_holder:
            # The one flush that there may be waits, and somebody for that.
            asked.append(customers.creating(store, 2))
            await until(lambda: store._committer._lanes_in_flight)
            asked.append(customers.creating(store, FREE))
            await until(lambda: store._committer._queue)

            await holder.rollback()
            await until(asked[0].done)

            await other_holder.rollback()
            await until(lambda: all(task.done() for task in asked))
        await asyncio.gather(*asked)


@pytest.mark.parametrize("refused_count", [1, 2], ids=["one", "two of one flush"])
async def test_a_lane_counts_as_locked_no_more_once_the_log_has_refused_what_waited_for_it(
    *, database_url: str, customers: Customers, refused_count: int
) -> None:
    async with open_store(database_url) as (store, _):
        first, *others = [(await customers.create(store, 1)).state.id for _ in range(1 + refused_count)]
        await store.execute(first, lives.plan(), origin())
        async with lock_lanes(database_url, [1]) as holder:
            planning = [asyncio.create_task(store.execute(one, lives.plan(), origin())) for one in others]
            await until(lambda: counts_as_locked(store, 1))
            await holder.rollback()
            answers = await asyncio.gather(*planning, return_exceptions=True)

        assert [type(answer) for answer in answers] == [ReservationTaken] * refused_count
        assert not counts_as_locked(store, 1)
