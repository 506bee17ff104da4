"""The store while its database is killed, replaced or taken away: nothing is lost or doubled, and no caller hangs."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from uuid import UUID

import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events import committer, loading, shared_connection
from events.errors import LogCorrupted, StoreUnavailable, VersionConflict
from events.record import Origin, Outcome
from events.state import Instance
from events.store import EventStore
from projections.inline import inline_projections
from tests import lifecycle
from tests.lifecycle import instance_id, request
from tests.locked_lanes import LaneCustomers
from tests.log_check import check_log
from tests.rewinding import rewind
from tests.services import OwnServices, Services
from tests.store_commands import create_instance, creation_origin, open_store, origin
from tests.waiting import POLL_S, until

ADA = instance_id("ada")


async def live(store: EventStore, *commands: c.AnyCommand) -> None:
    """Give `commands` to Ada's instance one after the other."""
    for command in commands:
        await store.execute(ADA, command, origin())


# --- killed under load -----------------------------------------------------------------------------------------------


class Writer:
    """Creates and deletes instances, and notes which commands the store has acknowledged."""

    def __init__(self, store: EventStore, number: int) -> None:
        self.store = store
        self.number = number
        self.acknowledged: list[UUID] = []
        self.given: list[UUID] = []

    async def write(self, stop: asyncio.Event) -> None:
        for serial in itertools.count():
            if stop.is_set():
                return
            customer_id = f"c{self.number}-{serial}"
            stream_id = instance_id(customer_id)
            await self._give(stream_id, request(customer_id=customer_id), creation_origin(stream_id))
            await self._give(stream_id, lifecycle.delete(), origin())

    async def _give(self, stream_id: UUID, command: c.AnyCommand, by: Origin) -> None:
        """Give a command until the store reports its outcome: its id makes a repeat safe."""
        self.given.append(by.command_id)
        while True:
            with suppress(StoreUnavailable):
                if isinstance(command, c.RequestInstance):
                    await self.store.create(stream_id, command, by)
                else:
                    await self.store.execute(stream_id, command, by)
                self.acknowledged.append(by.command_id)
                return


async def test_killing_postgresql_under_load_loses_and_doubles_no_append(own_services: OwnServices) -> None:
    async with open_store(own_services.database_url) as (store, pool):
        stop = asyncio.Event()
        writers = [Writer(store, number) for number in range(16)]
        writing = [asyncio.create_task(writer.write(stop)) for writer in writers]

        for goal in (200, 400):
            await until(lambda goal=goal: sum(len(writer.acknowledged) for writer in writers) >= goal)
            await own_services.kill("postgres")
        await until(lambda: sum(len(writer.acknowledged) for writer in writers) >= 600)
        stop.set()
        await asyncio.gather(*writing)

        async with pool.connection() as connection:
            log = await check_log(connection)
    acknowledged = [command_id for writer in writers for command_id in writer.acknowledged]
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) == log.commands.keys()
    assert set(log.versions.values()) == {2}


async def test_concurrent_writers_share_one_session(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, "LATE_AFTER_S", 60.0)
    async with open_store(database_url) as (store, pool):
        # The first command on a new connection checks where the connection leads.
        await live(store, request())
        writers = [Writer(store, number) for number in range(16)]
        stop = asyncio.Event()
        writing = [asyncio.create_task(writer.write(stop)) for writer in writers]
        await until(lambda: sum(len(writer.acknowledged) for writer in writers) >= 200)
        stop.set()
        await asyncio.gather(*writing)

        assert pool.get_stats()["connections_num"] == 1


# --- committed, and waiting for a standby ----------------------------------------------------------------------------

#: When the transactions began that are waiting for a standby.
WAITING_FOR_STANDBY = "SELECT xact_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def set_standbys(owner: AsyncConnection, names: str) -> None:
    """Set the standbys that commits wait for, from now or a moment later."""
    await owner.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names)))
    await owner.execute("SELECT pg_reload_conf()")


async def test_an_append_whose_wait_for_a_standby_is_cancelled_is_not_acknowledged(own_services: OwnServices) -> None:
    """The server reports such an append as done, as it is committed locally."""
    url, customers = own_services.database_url, LaneCustomers()
    async with open_store(url) as (store, _), await AsyncConnection.connect(url, autocommit=True) as owner:

        async def waiting() -> list[tuple[object, ...]]:
            return await (await owner.execute(WAITING_FOR_STANDBY)).fetchall()

        async def stuck() -> tuple[asyncio.Task[Outcome], list[tuple[object, ...]]]:
            while True:
                creating = customers.start_create(store, 1)
                while not creating.done():
                    if began := await waiting():
                        return creating, began
                    await asyncio.wait([creating], timeout=POLL_S)

        await set_standbys(owner, "away")
        creating, began = await stuck()

        await owner.execute(CANCEL)
        while not creating.done() and await waiting() in ([], began):
            await asyncio.wait([creating], timeout=POLL_S)

        assert not creating.done(), "the append is repeated, finds its own events, and waits again"
        await set_standbys(owner, "")
        outcome = await creating
        await check_log(owner)
    assert len(outcome.events) == 1


# --- unavailable -----------------------------------------------------------------------------------------------------


async def test_an_outage_refuses_queued_appends_together_with_those_that_were_tried(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 0.5)
    nowhere: AsyncConnectionPool = AsyncConnectionPool(
        "host=127.0.0.1 port=1", min_size=1, max_size=2, open=False, kwargs={"autocommit": True}
    )
    await nowhere.open()
    store = EventStore(nowhere, inline=())

    customers = [f"c{number}" for number in range(committer.BATCH_MAX * committer.FLUSHES * 4)]
    answers = await asyncio.gather(
        *(
            store.create(instance_id(one), request(customer_id=one), creation_origin(instance_id(one)))
            for one in customers
        ),
        return_exceptions=True,
    )

    asked = nowhere.get_stats()["requests_num"]
    await nowhere.close()
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    # Only the flushes that were under way together have asked for a connection, each twice at most; not another one for
    # each flush that would have followed.
    assert asked <= 2 * committer.FLUSHES_MAX


async def test_an_append_is_refused_while_read_tables_have_another_version_or_no_row(
    database_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_S_MAX", 0.1)
    await owner_conn.execute("UPDATE projection SET version = 99 WHERE name = 'reservation'")
    await owner_conn.execute("DELETE FROM projection WHERE name = 'instance'")
    async with open_store(database_url) as (store, _):
        with pytest.raises(StoreUnavailable):
            await live(store, request())


async def test_appends_beyond_the_limit_of_the_queue_are_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "QUEUE_MAX", 3)
    async with open_store(database_url) as (store, pool):
        customers = [f"c{number}" for number in range(5)]

        answers = await asyncio.gather(
            *(
                store.create(instance_id(one), request(customer_id=one), creation_origin(instance_id(one)))
                for one in customers
            ),
            return_exceptions=True,
        )

        async with pool.connection() as connection:
            log = await check_log(connection)
    refused = [one for one, answer in zip(customers, answers, strict=True) if isinstance(answer, StoreUnavailable)]
    assert refused == ["c3", "c4"]
    assert log.versions.keys() == {instance_id(one) for one in customers[:3]}


async def test_a_store_whose_pool_is_closed_says_that_the_process_is_stopping(database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        await live(store, request())

    with pytest.raises(StoreUnavailable, match="this process is stopping"):
        await store.load(ADA)
    with pytest.raises(StoreUnavailable, match="this process is stopping"):
        await live(store, lifecycle.delete())


async def test_closing_a_store_waits_for_the_appends_in_progress(database_url: str) -> None:
    customers = [f"c{number}" for number in range(200)]
    async with open_store(database_url) as (_, pool):
        store = EventStore(pool, inline=inline_projections())
        creating = [
            asyncio.create_task(
                store.create(instance_id(one), request(customer_id=one), creation_origin(instance_id(one)))
            )
            for one in customers
        ]
        await asyncio.sleep(0)  # Each task has queued its append.

        await store.close()

        async with pool.connection() as connection:
            log = await check_log(connection)
        assert len(log.commands) == len(customers)
        assert not any(outcome.duplicate for outcome in await asyncio.gather(*creating))


async def test_cancelled_callers_do_not_affect_the_appends_of_others(database_url: str) -> None:
    customers = [f"c{number}" for number in range(60)]
    async with open_store(database_url) as (store, pool):

        async def create(one: str) -> bool:
            outcome = await store.create(instance_id(one), request(customer_id=one), creation_origin(instance_id(one)))
            return outcome.duplicate

        creating = {one: asyncio.create_task(create(one)) for one in customers}
        await asyncio.sleep(0)
        gone = customers[::3]
        for one in gone:
            creating[one].cancel()
        stayed = await asyncio.gather(*(creating[one] for one in customers if one not in gone))

        # A cancelled caller does not know the outcome; a repeat is safe, whatever it was.
        await asyncio.gather(*(create(one) for one in gone))
        async with pool.connection() as connection:
            log = await check_log(connection)
    assert not any(stayed)
    assert log.versions == {instance_id(one): 1 for one in customers}


# --- a log that has lost events --------------------------------------------------------------------------------------


async def restore(services: Services, database_url: str, backup: str) -> None:
    """Put the backup in the database's place while processes are connected."""
    name = str(conninfo_to_dict(database_url)["dbname"])
    services.drop_database(name)
    async with await AsyncConnection.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        names = {"backup": sql.Identifier(backup), "name": sql.Identifier(name)}
        await connection.execute(sql.SQL("ALTER DATABASE {backup} RENAME TO {name}").format(**names))


async def back_up(services: Services, database_url: str) -> str:
    name = str(conninfo_to_dict(database_url)["dbname"])
    async with await AsyncConnection.connect(services.postgres_url.format("postgres"), autocommit=True) as connection:
        names = {"backup": sql.Identifier(f"{name}_backup"), "name": sql.Identifier(name)}
        await connection.execute(sql.SQL("CREATE DATABASE {backup} TEMPLATE {name} STRATEGY file_copy").format(**names))
    return f"{name}_backup"


async def test_a_process_that_outlives_a_restore_forgets_the_lost_history(
    services: Services, database_url: str
) -> None:
    async with open_store(database_url) as (store, _):
        await live(store, *lifecycle.INTENDED)
    backup = await back_up(services, database_url)
    async with open_store(database_url) as (survivor, _), open_store(database_url) as (bystander, _):
        await live(survivor, lifecycle.created(server_id="lost"))
        await bystander.load(ADA)

        await restore(services, database_url, backup)
        async with open_store(database_url) as (store, pool):
            await live(store, lifecycle.created(server_id="kept"))
            now = await store.load(ADA)

            # Both remember version 5, and the log has a version 5, but it is another one.
            assert await bystander.load(ADA) == now
            after = await survivor.execute(ADA, lifecycle.observed(), origin())
            await assert_server(pool, "kept")
        assert after.state.attempt is not None
        assert after.state.attempt.server_id == "kept"


async def assert_server(pool: AsyncConnectionPool, server_id: str) -> None:
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT server_id, version FROM instance")).fetchall()
    assert rows == [(server_id, 6)]


async def test_a_conflict_with_an_event_that_a_failover_lost_is_not_taken_for_a_corrupted_log(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _), open_store(database_url) as (other, _):
        await live(store, request())
        state = await store.load(ADA)
        await live(other, lifecycle.configure(agent_name="lost"))
        with pytest.raises(VersionConflict) as lost:
            await store.execute_at(state, ADA, lifecycle.configure(agent_name="late"), origin())

        rewind(database_url, ADA)

        assert await store.load_after_conflict(lost.value) == state
        await owner_conn.execute("UPDATE stream SET version = 9 WHERE stream_id = %s", (ADA,))
        with pytest.raises(LogCorrupted, match="is said to be at version 9, and its events end with 1"):
            await store.load_after_conflict(lost.value)


@pytest.mark.parametrize("meanwhile", ["looked", "forgot"])
async def test_a_change_decided_on_a_lost_history_is_decided_again_after_other_loads(
    database_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    monkeypatch.setattr(loading, "STATES_MAX", 1)
    seen: list[str | None] = []
    async with open_store(database_url) as (store, _), open_store(database_url) as (other, _):
        await create_instance(store, "bob")
        await live(store, request(), lifecycle.configure(agent_name="lost"))

        async def command_at(state: Instance | None) -> c.AnyCommand:
            assert state is not None
            seen.append(state.agent_name)
            if state.agent_name == "lost":
                rewind(database_url, ADA)
                await live(other, lifecycle.configure(agent_name="of the new history"))
                await store.load(ADA if meanwhile == "looked" else instance_id("bob"))
            return lifecycle.configure(recipe_id="written")

        after = (await store.change(ADA, command_at, origin())).state

        assert seen == ["lost", "of the new history"]
        assert (after.agent_name, after.recipe_id) == ("of the new history", "written")
        assert await store.load(ADA) == after
    names = await owner_conn.execute("SELECT agent_name FROM instance WHERE id = %s", (ADA,))
    assert await names.fetchone() == ("of the new history",)
