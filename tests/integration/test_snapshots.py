"""A process that begins reads a long stream from its last snapshot on, and whatever is wrong with that one, it has the right state."""

from __future__ import annotations

import asyncio
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from events import loading, snapshots
from events.ids import lane_of
from events.remembered import FOLD
from events.state import Instance
from tests import lives
from tests.requests_to_log import open_store, origin

ADA = lives.instance_id()
WHOLE = lives.Life.after(*lives.DELETED).state
PAGE, EVERY = 2, 5


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of some twenty events are long ones."""
    monkeypatch.setattr(loading, "STREAM_PAGE", PAGE)
    monkeypatch.setattr(snapshots, "EVERY", EVERY)


@pytest.fixture
async def lived(database_url: str) -> str:
    """A database with Ada's life, lived by one process."""
    async with open_store(database_url) as (store, _):
        for command in lives.DELETED:
            await store.execute(ADA, command, origin())
    return database_url


def do(database_url: str, statement: LiteralString, *parameters: object) -> None:
    """As the owner."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement, parameters or None)


def kept(database_url: str, stream_id: UUID = ADA) -> list[tuple[int, int]]:
    """Version and rules of what there is for an instance."""
    with psycopg.connect(database_url) as connection:
        query = "SELECT version, fold FROM snapshot WHERE lane = %s AND stream_id = %s"
        return connection.execute(query, (lane_of(stream_id), stream_id)).fetchall()


async def loaded(database_url: str) -> Instance | None:
    """By a process that has read nothing yet."""
    async with open_store(database_url) as (store, _):
        return await store.load(ADA)


async def test_what_is_behind_a_snapshot_is_not_read_again(lived: str) -> None:
    ((version, _),) = kept(lived)
    assert WHOLE.version - version < EVERY
    do(lived, "DELETE FROM event WHERE stream_id = %s AND version > %s AND version < %s", ADA, PAGE, version)

    assert await loaded(lived) == WHOLE


async def test_a_process_that_goes_on_from_a_snapshot_keeps_the_next_ones(lived: str) -> None:
    async with open_store(lived) as (store, _):
        bob = lives.instance_id("bob")
        await store.execute(bob, lives.request(customer_id="bob"), origin())
        for number in range(EVERY):
            await store.execute(bob, lives.configure(agent_name=f"Bob {number}"), origin())
    async with open_store(lived) as (store, _):
        for number in range(EVERY, 2 * EVERY):
            await store.execute(bob, lives.configure(agent_name=f"Bob {number}"), origin())
        state = await store.load(bob)

    assert kept(lived, bob) == [(2 * EVERY, FOLD)]
    async with open_store(lived) as (store, _):
        assert await store.load(bob) == state


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE snapshot SET digest = sha256('an event of a lost history')",
        "UPDATE snapshot SET state = '{\"id\": 1}'",
        "UPDATE snapshot SET state = ('{\"config\": ' || repeat('[', 5000) || repeat(']', 5000) || '}')::json",
        "UPDATE snapshot SET version = version + 1",
        "UPDATE snapshot SET fold = fold + 1, state = replace(state::text, 'ada', 'eve')::json",
        "UPDATE snapshot SET fold = fold - 1, state = replace(state::text, 'ada', 'eve')::json",
    ],
    ids=["of a lost history", "no state", "of any depth", "of another version", "of newer rules", "of older rules"],
)
async def test_one_that_is_not_of_this_log_or_of_these_rules_is_not_believed_and_replaced(
    lived: str, statement: LiteralString
) -> None:
    do(lived, statement)

    assert await loaded(lived) == WHOLE
    assert kept(lived) == [(WHOLE.version, FOLD)]
    assert await loaded(lived) == WHOLE, "from the new one"


async def test_a_stream_that_fits_a_page_is_read_without(lived: str) -> None:
    eve = lives.instance_id("eve")
    async with open_store(lived) as (store, _):
        await store.execute(eve, lives.request(customer_id="eve"), origin())
    do(lived, "DROP TABLE snapshot")

    async with open_store(lived) as (store, _):
        state = await store.load(eve)

    assert state is not None
    assert state.version == 1


async def test_an_append_stands_where_its_snapshot_cannot_be_kept(database_url: str) -> None:
    do(database_url, "REVOKE INSERT, UPDATE ON snapshot FROM hydracore_app")
    async with open_store(database_url) as (store, _):
        with capture_logs() as logs:
            for command in lives.DELETED:
                await store.execute(ADA, command, origin())
        assert await store.load(ADA) == WHOLE

    assert kept(database_url) == []
    assert {(log["event"], log["error"]) for log in logs} == {("snapshot_not_kept", "InsufficientPrivilege")}
    assert await loaded(database_url) == WHOLE


async def test_processes_that_keep_the_same_one_at_once_do_no_harm(lived: str) -> None:
    do(lived, "DELETE FROM snapshot")

    states = await asyncio.gather(*(loaded(lived) for _ in range(4)))

    assert states == [WHOLE] * 4
    assert kept(lived) == [(WHOLE.version, FOLD)]
