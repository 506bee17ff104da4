"""A new process reads a long stream from its last snapshot on, and gets the right state even if the snapshot is wrong."""

from __future__ import annotations

import asyncio
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from events import loading, snapshots
from events.errors import VersionConflict
from events.ids import lane_of
from events.state import Instance
from events.stream_state import FOLD_VERSION, encode
from tests import lifecycle
from tests.rewinding import rewind
from tests.store_commands import open_store, origin

ADA = lifecycle.instance_id()
WHOLE = lifecycle.InMemoryInstance.after(*lifecycle.DELETED).state
PAGE, EVERY = 2, 5


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pages and intervals, so that a stream of twenty events is a long one."""
    monkeypatch.setattr(loading, "STREAM_PAGE", PAGE)
    monkeypatch.setattr(snapshots, "EVENTS_PER_SNAPSHOT", EVERY)


@pytest.fixture
async def lived(database_url: str) -> str:
    """A database with Ada's whole life, written by one process."""
    async with open_store(database_url) as (store, _):
        for command in lifecycle.DELETED:
            await store.execute(ADA, command, origin())
    return database_url


def do(database_url: str, statement: LiteralString, *parameters: object) -> None:
    """Execute as the owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement, parameters or None)


def kept(database_url: str, stream_id: UUID = ADA) -> list[tuple[int, int]]:
    """Version and fold version of an instance's snapshot, if there is one."""
    with psycopg.connect(database_url) as connection:
        query = "SELECT version, fold FROM snapshot WHERE lane = %s AND stream_id = %s"
        return connection.execute(query, (lane_of(stream_id), stream_id)).fetchall()


def text(database_url: str) -> list[tuple[str, bytes]]:
    """The state in Ada's snapshot, and the digest of the event that it was taken at."""
    with psycopg.connect(database_url) as connection:
        query = "SELECT state::text, digest FROM snapshot WHERE stream_id = %s"
        return connection.execute(query, (ADA,)).fetchall()


async def loaded(database_url: str) -> Instance | None:
    """Ada's state as a store loads it that has read nothing yet."""
    async with open_store(database_url) as (store, _):
        return await store.load(ADA)


async def test_events_between_the_first_page_and_a_snapshot_are_not_read(lived: str) -> None:
    ((version, _),) = kept(lived)
    assert WHOLE.version - version < EVERY
    do(lived, "DELETE FROM event WHERE stream_id = %s AND version > %s AND version < %s", ADA, PAGE, version)

    assert await loaded(lived) == WHOLE


async def test_a_process_that_starts_from_a_snapshot_writes_the_next_ones(lived: str) -> None:
    async with open_store(lived) as (store, _):
        bob = lifecycle.instance_id("bob")
        await store.execute(bob, lifecycle.request(customer_id="bob"), origin())
        for number in range(EVERY):
            await store.execute(bob, lifecycle.configure(agent_name=f"Bob {number}"), origin())
    async with open_store(lived) as (store, _):
        for number in range(EVERY, 2 * EVERY):
            await store.execute(bob, lifecycle.configure(agent_name=f"Bob {number}"), origin())
        state = await store.load(bob)

    assert kept(lived, bob) == [(2 * EVERY, FOLD_VERSION)]
    async with open_store(lived) as (store, _):
        assert await store.load(bob) == state


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE snapshot SET state = replace(state::text, 'acme', 'evil')::json, digest = sha256('an event of a lost history')",
        "UPDATE snapshot SET state = replace(state::text, 'acme', 'evil')::json, fold = fold + 1",
        "UPDATE snapshot SET state = replace(state::text, 'acme', 'evil')::json, fold = fold - 1",
        "UPDATE snapshot SET state = replace(state::text, 'acme', 'evil')::json, version = version - 1",
        "UPDATE snapshot SET state = replace(state::text, stream_id::text, gen_random_uuid()::text)::json",
        "UPDATE snapshot SET state = '{\"id\": 1}'",
        "UPDATE snapshot SET state = ('{\"config\": {\"integrations\": ' || repeat('[', 5000) || repeat(']', 5000) || '}}')::json",
    ],
    ids=["lost history", "newer rules", "older rules", "other version", "other instance", "no state", "deeply nested"],
)
async def test_a_snapshot_of_another_history_or_fold_version_is_replaced_and_not_used(
    lived: str, statement: LiteralString
) -> None:
    good = text(lived)
    do(lived, statement)
    assert text(lived) != good

    assert await loaded(lived) == WHOLE
    assert (kept(lived), text(lived)) == ([(WHOLE.version, FOLD_VERSION)], good)


async def test_the_snapshot_of_another_instance_is_not_used(lived: str) -> None:
    bob = lifecycle.instance_id("bob")
    async with open_store(lived) as (store, _):
        await store.execute(bob, lifecycle.request(customer_id="bob"), origin())
        for number in range(EVERY):
            await store.execute(bob, lifecycle.configure(agent_name=f"Bob {number}"), origin())
    do(
        lived,
        "UPDATE snapshot SET (version, digest, state) = (SELECT version, digest, state FROM snapshot WHERE stream_id = %s)"
        " WHERE stream_id = %s",
        *(bob, ADA),
    )

    assert await loaded(lived) == WHOLE


async def test_a_valid_snapshot_is_not_written_again(lived: str) -> None:
    written = "SELECT xmin::text FROM snapshot"
    with psycopg.connect(lived, autocommit=True) as connection:
        before = connection.execute(written).fetchall()
        assert await loaded(lived) == WHOLE
        assert connection.execute(written).fetchall() == before


async def test_a_snapshot_of_a_lost_history_beyond_the_end_of_the_log_is_not_used(database_url: str) -> None:
    """The log ends with its first page, so no later event contradicts the snapshot."""
    async with open_store(database_url) as (store, _):
        await store.execute(ADA, lifecycle.request(), origin())
        await store.execute(ADA, lifecycle.configure(agent_name="Ada"), origin())
        state = await store.load(ADA)
    assert state is not None
    assert state.version == PAGE
    lost = encode(replace(state, version=EVERY, agent_name="lost")).decode()
    row = (lane_of(ADA), ADA, EVERY, FOLD_VERSION, lost)
    do(database_url, "INSERT INTO snapshot VALUES (%s, %s, %s, %s, sha256('lost'), %s)", *row)

    async with open_store(database_url) as (store, _):
        assert await store.load(ADA) == state
        outcome = await store.execute(ADA, lifecycle.configure(agent_name="lost"), origin())

    assert (outcome.state.version, len(outcome.events)) == (PAGE + 1, 1)


async def test_no_snapshot_is_written_of_a_state_of_a_lost_history(database_url: str) -> None:
    """A standby without the last event takes over, and another process writes another event in its place."""
    async with open_store(database_url) as (store, _):
        await store.execute(ADA, lifecycle.request(), origin())
        for number in range(EVERY - 2):
            await store.execute(ADA, lifecycle.configure(agent_name=f"Ada {number}"), origin())
        before = await store.load(ADA)
        rewind(database_url, ADA)
        async with open_store(database_url) as (other, _):
            await other.execute(ADA, lifecycle.configure(agent_name="of the new history"), origin())
        await store.load(ADA)
        with pytest.raises(VersionConflict):
            await store.execute_at(before, ADA, lifecycle.configure(recipe_id="written"), origin())

        state = (await store.execute(ADA, lifecycle.configure(recipe_id="written"), origin())).state

    assert (state.version, state.agent_name, state.recipe_id) == (EVERY, "of the new history", "written")
    assert await loaded(database_url) == state


async def test_a_stream_that_fits_a_page_is_read_without_a_snapshot(lived: str) -> None:
    eve = lifecycle.instance_id("eve")
    async with open_store(lived) as (store, _):
        await store.execute(eve, lifecycle.request(customer_id="eve"), origin())
    do(lived, "DROP TABLE snapshot")

    async with open_store(lived) as (store, _):
        state = await store.load(eve)

    assert state is not None
    assert state.version == 1


async def test_the_store_works_even_if_snapshots_can_be_neither_written_nor_read(database_url: str) -> None:
    do(database_url, "REVOKE ALL ON snapshot FROM hydracore_app")
    with capture_logs() as logs:
        async with open_store(database_url) as (store, _):
            for command in lifecycle.DELETED:
                await store.execute(ADA, command, origin())
            assert await store.load(ADA) == WHOLE
        assert await loaded(database_url) == WHOLE

    assert kept(database_url) == []
    assert {(log["event"], log["error"]) for log in logs} == {
        ("snapshot_not_kept", "InsufficientPrivilege"),
        ("snapshot_not_read", "InsufficientPrivilege"),
    }


async def test_the_store_does_not_wait_for_a_locked_snapshot_table(lived: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "WAIT_S_MAX", 0.1)
    with psycopg.connect(lived) as owner:
        owner.execute("TRUNCATE snapshot")  # and not committed

        async with open_store(lived) as (store, _):
            assert await store.load(ADA) == WHOLE
            bob = lifecycle.instance_id("bob")
            await store.execute(bob, lifecycle.request(customer_id="bob"), origin())
            for number in range(EVERY):
                await store.execute(bob, lifecycle.configure(agent_name=f"Bob {number}"), origin())
            state = await store.load(bob)
        owner.rollback()

    assert state is not None
    assert state.version == EVERY + 1
    assert kept(lived) == [(WHOLE.version, FOLD_VERSION)], "the truncated snapshot is back, and none was written late"
    assert kept(lived, bob) == []


async def test_stores_can_write_the_same_snapshot_concurrently(lived: str) -> None:
    do(lived, "DELETE FROM snapshot")

    states = await asyncio.gather(*(loaded(lived) for _ in range(4)))

    assert states == [WHOLE] * 4
    assert kept(lived) == [(WHOLE.version, FOLD_VERSION)]
