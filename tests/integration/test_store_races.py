"""Concurrent changes of one instance, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from psycopg import AsyncConnection

from events import commands as c
from events import types as e
from events.errors import StoreUnavailable, VersionConflict
from events.record import Outcome
from events.state import Instance
from events.store import EventStore
from tests import lifecycle
from tests.lifecycle import NOW_MS, SECOND_KEY, request
from tests.log_check import check_log
from tests.store_commands import origin
from tests.store_fixtures import ADA, execute_all, other_store_fixture, request_origin, store_fixture

__all__ = ["other_store_fixture", "store_fixture"]


async def test_a_command_decided_on_an_outdated_state_is_a_conflict(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, request())
    past = await other_store.load(ADA)
    await execute_all(store, lifecycle.delete())
    before = await check_log(owner_conn)

    with pytest.raises(VersionConflict) as conflict:
        await other_store.execute_at(past, ADA, lifecycle.plan(), origin())

    assert (conflict.value.expected, conflict.value.actual) == (1, 2)
    assert await check_log(owner_conn) == before


async def test_a_command_decided_on_a_stream_that_the_log_has_lost_is_a_conflict(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, request())
    past = await other_store.load(ADA)
    await owner_conn.execute("TRUNCATE event, command, stream")

    with pytest.raises(VersionConflict) as conflict:
        # This store has not read the state itself, so it does not know the digest that would show the loss as well.
        await store.execute_at(past, ADA, lifecycle.plan(), origin())

    assert (conflict.value.expected, conflict.value.actual) == (1, 0)


async def test_commands_that_conflict_are_decided_again_until_all_are_appended(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    ledgers = [UUID(int=n) for n in range(1, 9)]

    await asyncio.gather(
        *(
            each.execute(ADA, lifecycle.usage(1, ledger_id=ledger), origin())
            for ledger in ledgers
            for each in (store, other_store)
        )
    )

    state = await store.load(ADA)
    assert state is not None
    assert state.usage_seqs == {str(ledger): 1 for ledger in ledgers}
    recorded = [event for event in (await check_log(owner_conn)).events if event["type"] == "usage_recorded"]
    assert len(recorded) == len(ledgers)


async def test_changes_in_one_process_are_each_decided_once_in_the_order_of_the_requests(store: EventStore) -> None:
    await store.create(ADA, request(), request_origin())
    decided = list[int]()

    async def change(number: int) -> Outcome:
        async def command(state: Instance | None) -> c.AnyCommand:
            assert state is not None
            decided.append(state.version)
            return c.ChangeConfig(at_ms=NOW_MS, agent_name=f"agent {number}")

        return await store.change(ADA, command, origin())

    outcomes = await asyncio.gather(*map(change, range(60)))

    assert decided == list(range(1, 61))
    assert [outcome.state.version for outcome in outcomes] == list(range(2, 62))


async def test_concurrent_changes_through_two_stores_are_all_appended(
    store: EventStore, other_store: EventStore, owner_conn: AsyncConnection
) -> None:
    await store.create(ADA, request(), request_origin())

    async def change(each: EventStore, number: int) -> None:
        async def command(_: Instance | None) -> c.AnyCommand:
            return c.ChangeConfig(at_ms=NOW_MS, agent_name=f"agent {number}")

        await each.change(ADA, command, origin())

    await asyncio.gather(*(change((store, other_store)[number % 2], number) for number in range(80)))

    changed = [event for event in (await check_log(owner_conn)).events if event["type"] == "config_changed"]
    assert len(changed) == 80


async def test_a_change_that_keeps_losing_races_fails_after_a_limit(
    store: EventStore, other_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("events.store.RACES_MAX", 3)
    await store.create(ADA, request(), request_origin())
    decided = list[int]()

    async def overtaken(state: Instance | None) -> c.AnyCommand:
        assert state is not None
        decided.append(state.version)
        faster = c.ChangeConfig(at_ms=NOW_MS, agent_name=f"at {state.version}")
        await other_store.execute(ADA, faster, origin())
        return lifecycle.delete()

    with pytest.raises(VersionConflict) as conflict:
        await store.change(ADA, overtaken, origin())

    assert decided == [1, 2, 3]
    assert (conflict.value.expected, conflict.value.actual) == (3, 4)


async def test_a_change_that_waits_too_long_for_another_fails_and_later_ones_succeed(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(ADA, request(), request_origin())
    monkeypatch.setattr("events.stream_locks.RETRY_S_MAX", 0.05)
    begun, proceed = asyncio.Event(), asyncio.Event()

    async def held(_: Instance | None) -> c.AnyCommand:
        begun.set()
        await proceed.wait()
        return c.ChangeConfig(at_ms=NOW_MS, agent_name="held")

    slow = asyncio.create_task(store.change(ADA, held, origin()))
    await begun.wait()

    with pytest.raises(StoreUnavailable):
        await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="late"), origin())

    proceed.set()
    await slow
    outcome = await store.execute(ADA, c.ChangeConfig(at_ms=NOW_MS, agent_name="next"), origin())
    assert outcome.state.version == 3


async def test_an_answer_that_appends_nothing_gives_the_current_state(
    store: EventStore, other_store: EventStore
) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    await execute_all(other_store, lifecycle.delete())

    # In the state that this store last read the agent was healthy, so nothing would be appended for it either.
    outcome = await store.execute(ADA, lifecycle.health("healthy"), origin())

    assert (outcome.events, outcome.state.status) == ((), "deleting")


async def test_a_command_is_not_refused_on_an_outdated_state(store: EventStore, other_store: EventStore) -> None:
    await execute_all(store, *lifecycle.RUNNING)
    await execute_all(other_store, lifecycle.rotate_key())

    # In the state that this store last read the key was acknowledged, and another one would be refused.
    outcome = await store.execute(ADA, lifecycle.issue(SECOND_KEY), origin())

    assert isinstance(outcome.events[0], e.AgentKeyIssued)
