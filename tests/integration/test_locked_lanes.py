"""Lanes that stay locked: appends to them wait for a while, and delay neither other appends nor the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from events import committer, locked_lanes
from events.errors import StoreUnavailable
from events.exchange import hang_up
from events.record import Outcome
from events.store import EventStore
from hydracore.db.answer_timeout import AnswerTimeoutConnection
from hydracore.db.pool import open_pool
from projections.inline import inline_projections
from tests.lifecycle import instance_id
from tests.locked_lanes import (
    TEST_SESSIONS,
    UNLOCKED_LANE,
    WAITING_SESSIONS,
    LaneCustomers,
    count_rows,
    has_no_rows,
    has_rows,
    is_treated_as_locked,
    lock_lanes,
)
from tests.log_check import check_log
from tests.store_commands import open_store
from tests.waiting import until


@pytest.fixture
def customers() -> LaneCustomers:
    return LaneCustomers()


@asynccontextmanager
async def store_with_answer_timeout(database_url: str, *, size: int) -> AsyncGenerator[EventStore]:
    """A store as in the API."""
    async with open_pool(
        database_url, role="hydracore_app", application="test", size=size, with_answer_timeout=True
    ) as pool:
        store = EventStore(pool, inline=inline_projections())
        yield store
        await store.close()


async def test_appends_that_share_a_flush_with_a_locked_lane_are_applied_without_it(
    database_url: str, customers: LaneCustomers
) -> None:
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        stuck, *others = (customers.start_create(store, lane) for lane in (1, 40, 0, 41))

        await asyncio.gather(*others)

        assert not stuck.done()
        await holder.rollback()
        await stuck


@pytest.mark.long
@pytest.mark.parametrize("locked_count", [5, 12], ids=["five", "more than there are connections"])
@pytest.mark.parametrize("together", [True, False], ids=["in one flush", "one after the other"])
async def test_appends_to_other_lanes_are_applied_however_many_lanes_are_locked(
    *,
    database_url: str,
    owner_conn: AsyncConnection,
    customers: LaneCustomers,
    monkeypatch: pytest.MonkeyPatch,
    locked_count: int,
    together: bool,
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 60.0)
    async with open_store(database_url) as (store, pool), lock_lanes(database_url, range(locked_count)) as holder:
        stuck: list[asyncio.Task[Outcome]] = []
        for lane in range(locked_count):
            stuck.append(customers.start_create(store, lane))
            if not together:
                await customers.create(store, UNLOCKED_LANE)
        await customers.create(store, UNLOCKED_LANE)

        # A read gets a connection, too.
        assert await store.load(instance_id("nobody")) is None
        assert not any(task.done() for task in stuck)
        assert pool.get_stats()["pool_size"] <= pool.max_size
        await holder.rollback()
        await asyncio.gather(*stuck)
    assert len((await check_log(owner_conn)).versions) == locked_count + (1 if together else locked_count + 1)


async def test_a_locked_lane_accumulates_no_sessions_and_refused_appends_are_not_applied_later(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 1.0)
    monkeypatch.setattr(committer, "LOCK_S_MAX", 0.2)
    monkeypatch.setattr(AnswerTimeoutConnection, "answer_s_max", 0.8)
    size, refused = 2, 0
    async with store_with_answer_timeout(database_url, size=size) as store:
        async with lock_lanes(database_url, [1]):
            for _ in range(2 * size):
                with pytest.raises(StoreUnavailable):
                    await customers.create(store, 1)
                refused += 1

            assert await count_rows(owner_conn, TEST_SESSIONS) <= size
            await until(lambda: has_no_rows(owner_conn, WAITING_SESSIONS))

        await customers.create(store, 1)
    assert len((await check_log(owner_conn)).versions) == 1


async def test_all_appends_that_wait_for_a_locked_lane_are_refused_with_the_reason(
    database_url: str, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for the append to a free lane on a busy machine.
    monkeypatch.setattr(committer, "RETRY_S_MAX", 4.0)
    monkeypatch.setattr(committer, "LOCK_S_MAX", 0.2)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]):
        stuck = [customers.create(store, 1) for _ in range(3)]

        answers = await asyncio.gather(*stuck, customers.create(store, UNLOCKED_LANE), return_exceptions=True)

        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3 + [Outcome]
        assert {str(answer) for answer in answers[:3]} == {locked_lanes.LANE_LOCKED}


async def test_the_number_of_appends_that_wait_for_a_locked_lane_is_bounded(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that an append is refused only for being one too many.
    monkeypatch.setattr(committer, "RETRY_S_MAX", 600.0)
    monkeypatch.setattr(locked_lanes, "WAITING_PER_LANE_MAX", 3)
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        waiting = [customers.start_create(store, 1)]
        await until(lambda: is_treated_as_locked(store, 1))
        waiting += [customers.start_create(store, 1) for _ in range(4)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

        await customers.create(store, UNLOCKED_LANE)

        assert {type(task.exception()) for task in done} == {StoreUnavailable}
        await holder.rollback()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    applied = [answer for answer in answers if isinstance(answer, Outcome)]
    assert len(applied) >= 3
    assert len((await check_log(owner_conn)).versions) == len(applied) + 1


async def test_a_lane_no_longer_counts_as_locked_once_an_append_to_it_has_been_applied(
    database_url: str, customers: LaneCustomers
) -> None:
    async with open_store(database_url) as (store, _):
        async with lock_lanes(database_url, [1]) as holder:
            waiting = [customers.start_create(store, 1) for _ in range(8)]
            await until(lambda: is_treated_as_locked(store, 1))
            await holder.rollback()
            await asyncio.gather(*waiting)

        assert not is_treated_as_locked(store, 1)
        await customers.create(store, 1)


async def test_closing_a_store_waits_for_the_appends_that_wait_for_a_lane(
    database_url: str, customers: LaneCustomers
) -> None:
    async with open_store(database_url) as (store, _), lock_lanes(database_url, [1]) as holder:
        waiting = customers.start_create(store, 1)
        # Nothing else is in progress for which closing would wait.
        await until(lambda: is_treated_as_locked(store, 1) and not store._committer._flushers)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        await customers.create(store, UNLOCKED_LANE)
        assert not closing.done()

        await holder.rollback()
        await closing

        assert (await waiting).state.version == 1


async def test_a_session_whose_client_is_gone_ends_even_while_it_waits_for_a_lock(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with (
        open_pool(database_url, role="hydracore_app", application="test", size=1) as pool,
        await AsyncConnection.connect(database_url) as holder,
    ):
        await holder.execute("LOCK TABLE instance IN ACCESS EXCLUSIVE MODE")
        async with pool.connection() as connection:
            reading = asyncio.create_task(read(connection))
            await until(lambda: has_rows(owner_conn, WAITING_SESSIONS))

            hang_up(connection)
            await reading

        await until(lambda: has_no_rows(owner_conn, WAITING_SESSIONS))


async def test_settings_to_detect_lost_clients_are_sent_except_without_a_role_as_behind_a_pooler(
    database_url: str,
) -> None:
    settings_sent = {}
    for role in ("hydracore_app", ""):
        url = make_conninfo(database_url, options="-c tcp_keepalives_idle=7" if role else "")
        async with open_pool(url, role=role, application="test", size=1) as pool, pool.connection() as connection:
            asked = "SELECT name, setting FROM pg_settings WHERE source = 'client' AND name ~ '^(client_conn|tcp_keep)'"
            settings_sent[role] = dict(await (await connection.execute(asked)).fetchall())

    assert settings_sent["hydracore_app"] == {
        "client_connection_check_interval": "2000",
        "tcp_keepalives_idle": "7",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    assert settings_sent[""] == {}


async def read(connection: AsyncConnection) -> None:
    with suppress(psycopg.OperationalError):
        await connection.execute("SELECT count(*) FROM instance")


# --- a message that is only partly sent -------------------------------------------------------------------------------

#: A Sync, which ends each of our messages.
SYNC_BYTES = 5


class FailingNetwork:
    """A proxy to PostgreSQL that goes silent in the middle of an append, as when the client's machine loses its power."""

    def __init__(self, database_url: str) -> None:
        given = conninfo_to_dict(database_url)
        self._there = (str(given["host"]), int(str(given["port"])))
        self.is_silent = asyncio.Event()
        self._ends: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[int]:
        """The port to connect to. Until the end, neither side learns that the other has closed its connection."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            for end in self._ends:
                end.close()
            await asyncio.gather(*(end.wait_closed() for end in self._ends), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._there)
        self._ends += writer, there_writer
        await asyncio.gather(self._pass(there_reader, writer), self._pass(reader, there_writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if b'"expected_version"' in data:
                    writer.write(data[:-SYNC_BYTES])
                    self.is_silent.set()
                elif not self.is_silent.is_set():
                    writer.write(data)


async def test_a_partly_received_append_holds_its_lane_no_longer_than_a_flush_may_take(
    database_url: str, owner_conn: AsyncConnection, customers: LaneCustomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    if owner_conn.info.server_version < 17_00_00:
        pytest.skip("this server cannot limit a transaction")
    monkeypatch.setattr("events.batch.TRANSACTION_S_MAX", 1.0)
    network = FailingNetwork(database_url)
    async with network.open() as port, open_store(database_url) as (store, _):
        pool: AsyncConnectionPool
        async with open_pool(
            make_conninfo(database_url, port=port), role="hydracore_app", application="gone", size=1
        ) as pool:
            away = EventStore(pool, inline=inline_projections())
            lost = customers.start_create(away, 1)
            await network.is_silent.wait()

            await customers.create(store, 1)

            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
    assert len((await check_log(owner_conn)).versions) == 1
