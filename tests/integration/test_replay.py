"""Random lives of several instances at once, on a real log: the read tables equal a replay of the log."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from events import keys
from events.errors import Rejected, ReservationTaken
from events.evolve import evolve
from events.ids import lane_of
from events.lifecycle import TRANSITIONS
from events.saga import Idle, next_step
from events.state import Instance
from events.store import EventStore
from hydracore.audit import erasing
from hydracore.audit.verifying import Progress, Request, verify
from hydracore.cli import main
from tests import lifecycle
from tests.log_check import Row, check_log
from tests.random_lifecycles import FORWARD, InstanceIdentity, Move, command_of, moves
from tests.replaying import Replay, event_of
from tests.store_commands import open_store, origin

STEPS = {(source, destination) for _, source, destination in TRANSITIONS}
CUSTOMERS = ("ada", "bob", "eve")

_EVENTS = b"""
SELECT lane, seq, stream_id, version, type, schema_version, payload::text AS payload
  FROM event
 WHERE tenant_id = %s
 ORDER BY lane, seq
"""
_INSTANCES = b"SELECT * FROM instance WHERE tenant_id = %s"
_LINES = b"""
SELECT l.lane, l.instance_id AS id, l.seq AS version, l.level, l.stage, l.message, l.created_at
  FROM provision_log l
  JOIN instance i ON i.lane = l.lane AND i.id = l.instance_id
 WHERE i.tenant_id = %s
"""
_RESERVATIONS = b"""
SELECT i.lane, r.instance_id AS id, r.version, r.kind, r.value, r.reserved_at, r.released_at
  FROM reservation r
  JOIN instance i ON i.id = r.instance_id
 WHERE i.tenant_id = %s
"""

_worlds = itertools.count(1)


@pytest.fixture
async def store(database_url: str) -> AsyncGenerator[EventStore]:
    async with open_store(database_url) as (opened, _):
        yield opened


@pytest.fixture
async def other_store(database_url: str) -> AsyncGenerator[EventStore]:
    async with open_store(database_url) as (opened, _):
        yield opened


async def live(store: EventStore, identity: InstanceIdentity, move: Move) -> None:
    """Give one command and accept a refusal: what must hold is checked on the tables."""
    command = command_of(move, identity, await store.load(identity.id))
    try:
        await store.execute(identity.id, command, origin())
    except (Rejected, ReservationTaken):
        return


async def check_parity(connection: AsyncConnection, tenant_id: str) -> None:
    """The read tables of one tenant are exactly what a replay of its events gives."""
    replay = Replay()
    replay.feed(await rows(connection, _EVENTS, tenant_id))

    assert in_order(await rows(connection, _INSTANCES, tenant_id)) == in_order(replay.instance)
    assert in_order(await rows(connection, _LINES, tenant_id)) == in_order(replay.provision_log)
    assert in_order(await rows(connection, _RESERVATIONS, tenant_id)) == in_order(replay.reservation)


async def rows(connection: AsyncConnection, statement: bytes, tenant_id: str) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(statement, (tenant_id,))).fetchall()


def in_order(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["id"], row["version"], str(row.get("kind")), str(row.get("value"))))


def check_life(states: list[Instance], row: Row) -> None:
    """One instance's states, one an event, and its row."""
    assert [state.version for state in states] == list(range(1, len(states) + 1))
    for before, after in itertools.pairwise(states):
        assert before.status == after.status or (before.status, after.status) in STEPS
    assert row["version"] == len(states)
    assert (row["wake_at"] is None) == isinstance(next_step(states[-1]), Idle)


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.sampled_from(CUSTOMERS), moves), min_size=1, max_size=6), min_size=8, max_size=25
    ),
    erased_before=st.integers(1, 30),
)
async def test_after_random_lives_and_an_erasure_the_read_tables_equal_a_replay(
    store: EventStore,
    other_store: EventStore,
    owner_conn: AsyncConnection,
    *,
    database_url: str,
    tmp_path: Path,
    rounds: list[list[tuple[str, Move]]],
    erased_before: int,
) -> None:
    tenant_id = f"world-{next(_worlds)}"
    people = {name: InstanceIdentity(tenant_id, name) for name in CUSTOMERS}

    for number, together in enumerate(rounds):
        # Every other round goes through another store, which has other states in memory.
        through = (store, other_store)[number % 2]
        if number == erased_before:
            await erase(database_url, tmp_path, tenant_id)
        await asyncio.gather(*(live(through, people[name], move) for name, move in together))

    await check_parity(owner_conn, tenant_id)
    for row in await rows(owner_conn, _INSTANCES, tenant_id):
        assert await store.load(row["id"]) == await other_store.load(row["id"])
        check_life(await states_of(owner_conn, tenant_id, row["id"]), row)
    lanes = {lane_of(identity.id) for identity in people.values()}
    report = await asyncio.to_thread(verify, Request(conninfo=database_url, lanes=tuple(sorted(lanes))), Progress())
    assert report.findings == []


async def erase(database_url: str, folder: Path, tenant_id: str) -> None:
    """Erase one of the customers as an operator does, by a process of its own."""
    words = ["audit", "erase-customer", CUSTOMERS[0], "--tenant", tenant_id, "--also-live", "--yes"]
    env = {"HYDRACORE_DATABASE_URL": database_url, "HYDRACORE_ERASURE_FILE": str(folder / "erasures.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        # No other process here caches a key, or is in the middle of an append.
        patch.setattr(keys, "CACHE_S", 0.0)
        patch.setattr(erasing, "APPEND_S", 0.0)
        result = await asyncio.to_thread(CliRunner().invoke, main, words, env=env)
    assert result.exit_code == 0 or "There is no customer" in result.stderr, result.output


async def states_of(connection: AsyncConnection, tenant_id: str, stream_id: UUID) -> list[Instance]:
    life = lifecycle.InMemoryInstance(stream_id)
    states: list[Instance] = []
    for row in await rows(connection, _EVENTS, tenant_id):
        if row["stream_id"] == stream_id:
            life.current = evolve(life.current, event_of(row), stream_id=stream_id)
            states.append(life.state)
    return states


async def test_every_instance_can_be_deleted_and_keeps_only_its_idempotency_key_reserved(
    store: EventStore, owner_conn: AsyncConnection
) -> None:
    people = [InstanceIdentity("acme", f"c{number}") for number in range(20)]

    for number, identity in enumerate(people):
        for _ in range(number):
            await live(store, identity, FORWARD)
        await live(store, identity, lambda one, _: one.request())
        await live(store, identity, lambda _, __: lifecycle.delete())
    await asyncio.gather(*(finish(store, identity) for identity in people))

    await check_parity(owner_conn, "acme")
    statuses = await owner_conn.execute("SELECT DISTINCT status FROM instance")
    assert await statuses.fetchall() == [("deleted",)]
    held = await owner_conn.execute("SELECT DISTINCT kind FROM reservation WHERE released_at IS NULL")
    assert await held.fetchall() == [("idempotency_key",)]
    log = await check_log(owner_conn)
    assert len(log.versions) == len(people)


async def finish(store: EventStore, identity: InstanceIdentity) -> None:
    for _ in range(10):
        await live(store, identity, FORWARD)
