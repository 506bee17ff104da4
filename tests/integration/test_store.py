"""The store on a real PostgreSQL: what is appended, what is refused, and what each caller gets as an answer."""

from __future__ import annotations

import asyncio
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection

from events import commands as c
from events import types as e
from events.errors import LogCorrupted, NotFound, RequestMismatch, TransitionRefused
from events.heads import read_heads
from events.ids import command_id_for, lane_of
from events.store import EventStore
from tests import lifecycle
from tests.lifecycle import NOW_MS, request
from tests.log_check import check_log
from tests.store_commands import open_store, origin
from tests.store_fixtures import ADA, execute_all, other_store_fixture, request_origin, store_fixture

__all__ = ["other_store_fixture", "store_fixture"]


# --- appends ---------------------------------------------------------------------------------------------------------


async def test_every_store_loads_a_created_instance_in_the_same_state(
    store: EventStore, other_store: EventStore
) -> None:
    outcome = await store.create(ADA, request(agent_name="Ada's"), request_origin())

    assert isinstance(outcome.events[0], e.InstanceRequested)
    assert (outcome.duplicate, outcome.state.version, outcome.state.agent_name) == (False, 1, "Ada's")
    assert await other_store.load(ADA) == await store.load(ADA) == outcome.state


async def test_an_instance_that_was_never_requested_is_not_found(store: EventStore) -> None:
    assert await store.load(ADA) is None
    with pytest.raises(NotFound):
        await store.execute(ADA, lifecycle.delete(), origin())


async def test_the_state_after_a_whole_life_is_the_same_in_memory_and_from_the_log(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, *lifecycle.DELETED)

    imagined = lifecycle.InMemoryInstance.after(*lifecycle.DELETED).state
    assert await store.load(ADA) == await other_store.load(ADA) == imagined
    assert (await check_log(owner_conn)).versions == {ADA: imagined.version}


async def test_the_log_keeps_actor_cause_and_the_exact_bytes(store: EventStore, owner_conn: AsyncConnection) -> None:
    result = b'{"instance_id": 1,   "a":\t2}'
    await store.create(ADA, request(agent_name="literally \\u0000 and \N{SNOWMAN}"), request_origin(b"hash", result))

    log = await check_log(owner_conn)

    command = log.commands[command_id_for(ADA, "request")]
    assert (command["name"], command["actor"], command["causation_id"]) == (
        "RequestInstance",
        "customer:ada",
        UUID(int=9),
    )
    assert (command["request_hash"], command["result"].encode()) == (b"hash", result)
    assert '"agent_name":"literally \\\\u0000 and \N{SNOWMAN}"' in log.events[0]["payload"]


async def test_a_command_can_follow_the_state_that_several_events_of_one_append_have_made(store: EventStore) -> None:
    await execute_all(store, request())
    planned = await store.execute(ADA, lifecycle.plan(), origin())
    assert len(planned.events) > 1

    outcome = await store.execute_at(planned.state, ADA, lifecycle.created(), origin())

    assert (outcome.duplicate, outcome.state.version) == (False, planned.state.version + 1)


async def test_a_command_that_changes_nothing_appends_nothing(store: EventStore, owner_conn: AsyncConnection) -> None:
    await execute_all(store, request(), lifecycle.delete())
    before = await check_log(owner_conn)

    outcome = await store.execute(ADA, lifecycle.delete(), origin())

    assert (outcome.events, outcome.state.status) == ((), "deleting")
    assert await check_log(owner_conn) == before


async def test_a_refused_command_appends_nothing(store: EventStore, owner_conn: AsyncConnection) -> None:
    await execute_all(store, request(), lifecycle.delete())
    before = await check_log(owner_conn)

    with pytest.raises(TransitionRefused):
        await store.execute(ADA, lifecycle.plan(), origin())

    assert await check_log(owner_conn) == before


async def test_after_a_commit_the_store_reports_the_new_head_of_each_lane(database_url: str) -> None:
    told: list[dict[int, int]] = []
    async with open_store(database_url) as (_, pool):
        store = EventStore(pool, inline=(), on_commit=told.append)

        await store.create(ADA, request(), request_origin())
        await store.create(ADA, request(), request_origin())
        await store.execute(ADA, lifecycle.plan(), origin())

        async with pool.connection() as connection:
            heads = await read_heads(connection)
    assert told == [{lane_of(ADA): 1}, {lane_of(ADA): 4}]
    assert heads[lane_of(ADA)] == 4


# --- repeats ---------------------------------------------------------------------------------------------------------


async def test_a_repeated_request_gets_the_stored_answer(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await store.create(ADA, request(), request_origin(b"same", b'{"answer": 1}'))
    before = await check_log(owner_conn)

    repeat = await other_store.create(ADA, request(at_ms=NOW_MS + 5), request_origin(b"same", b'{"answer": 2}'))

    assert (repeat.duplicate, repeat.events, repeat.result) == (True, (), b'{"answer": 1}')
    assert repeat.state.created_ms == NOW_MS
    assert await other_store.earlier_outcome(ADA, request_origin(b"same", b'{"answer": 2}')) == repeat, (
        "also for a request that could no longer be made"
    )
    assert await check_log(owner_conn) == before


async def test_the_outcome_of_a_repeated_request_has_the_current_state(
    store: EventStore, other_store: EventStore
) -> None:
    await store.create(ADA, request(), request_origin(b"same"))
    await execute_all(store, lifecycle.plan(), lifecycle.delete())

    repeat = await other_store.create(ADA, request(), request_origin(b"same"))

    assert (repeat.duplicate, repeat.state.status) == (True, "deleting")


@pytest.mark.parametrize("other_hash", [b"other", None])
async def test_the_same_command_with_another_request_is_refused(
    store: EventStore, owner_conn: AsyncConnection, other_hash: bytes | None
) -> None:
    await store.create(ADA, request(), request_origin(b"same"))
    before = await check_log(owner_conn)

    with pytest.raises(RequestMismatch):
        await store.create(ADA, request(agent_name="Eve's"), request_origin(other_hash))

    assert await check_log(owner_conn) == before


async def test_ten_concurrent_identical_requests_create_one_instance(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    outcomes = await asyncio.gather(
        *(
            each.create(ADA, request(), request_origin(b"same", b"%d" % n))
            for n, each in enumerate([store, other_store] * 5)
        )
    )

    assert sorted(outcome.duplicate for outcome in outcomes) == [False] + [True] * 9
    assert len({outcome.result for outcome in outcomes if outcome.duplicate}) == 1
    assert len((await check_log(owner_conn)).events) == 1


async def test_a_command_id_that_was_appended_is_not_appended_again(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    at = await other_store.load(ADA)
    late = origin()

    landed = await store.execute_at(await store.load(ADA), ADA, lifecycle.health("late"), late)
    again = await other_store.execute_at(at, ADA, lifecycle.health("unreachable"), late)

    assert (landed.duplicate, again.duplicate, again.events) == (False, True, ())
    assert landed.state == again.state
    await check_log(owner_conn)


# --- damaged logs ----------------------------------------------------------------------------------------------------


async def test_a_gap_in_the_log_raises_and_is_not_skipped(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    await owner_conn.execute("DELETE FROM event WHERE version = 2")

    with pytest.raises(LogCorrupted):
        await other_store.load(ADA)


async def test_an_inconsistent_event_is_reported_with_its_place(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    await owner_conn.execute(
        "UPDATE event SET payload = regexp_replace(payload::text, '[0-9]{13}', '\"soon\"')::json WHERE seq = 3"
    )

    with pytest.raises(LogCorrupted, match=f"Lane {lane_of(ADA)} at 3: the history of {ADA} is inconsistent here"):
        await other_store.load(ADA)


@pytest.mark.parametrize("time", ["infinity", "294270-01-01"])
async def test_an_append_after_a_time_out_of_range_is_refused(
    store: EventStore, owner_conn: AsyncConnection, time: str
) -> None:
    await store.create(ADA, request(), request_origin())
    await owner_conn.execute("UPDATE command SET recorded_at = %s", (time,))

    with pytest.raises(LogCorrupted, match=f"Lane {lane_of(ADA)} at 1: it was recorded at a time that is out of range"):
        await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="second"), origin())


async def test_an_append_after_events_whose_command_is_missing_is_refused(
    store: EventStore, owner_conn: AsyncConnection
) -> None:
    await store.create(ADA, request(), request_origin())
    for name in ("second", "third"):
        await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name=name), origin())
    await owner_conn.execute("DELETE FROM command WHERE first_seq >= 2")

    with pytest.raises(LogCorrupted, match=f"Lane {lane_of(ADA)} at 2: the command of this event is missing"):
        await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="fourth"), origin())


@pytest.mark.parametrize(
    "edit",
    ["DELETE FROM event WHERE version = 2", "UPDATE stream SET version = 1", "UPDATE stream SET version = 7"],
)
async def test_a_stream_whose_recorded_version_differs_from_its_events_is_reported_as_corrupt(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection, edit: str
) -> None:
    await store.create(ADA, request(), origin())
    await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="first"), origin())
    await owner_conn.execute(edit.encode())

    for one in (store, other_store):
        with pytest.raises(LogCorrupted, match="and its events end with") as raised:
            await one.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="second"), origin())
        assert raised.value.lane == lane_of(ADA)


async def test_the_rights_of_the_app_s_role_are_enough_for_the_store_but_not_to_delete_events(
    database_url: str,
) -> None:
    async with open_store(database_url) as (store, pool):
        await execute_all(store, *lifecycle.DELETED)

        async with pool.connection() as connection:
            role = await (await connection.execute("SELECT current_user")).fetchone()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute("DELETE FROM event")
    assert role == ("hydracore_app",)
