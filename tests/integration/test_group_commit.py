"""Appends that share a commit: each has its own result, and a refused one leaves no trace in any read table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from events import commands as c
from events import committer
from events.committer import BATCH_MAX
from events.errors import Rejected, ReservationTaken, VersionConflict
from events.ids import lane_of
from events.record import Outcome
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.inline import inline_projections
from tests import lifecycle
from tests.lifecycle import instance_id, request
from tests.log_check import check_log
from tests.store_commands import creation_origin, open_store, origin
from tests.waiting import until

#: Longer than any test.
LONG_S = 600.0

#: Customers of instances that are requested beside those that a test is about, and must not be affected.
CROWD = [f"bystander-{number}" for number in range(8)]


@pytest.fixture
async def store(database_url: str) -> AsyncGenerator[EventStore]:
    async with open_store(database_url) as (opened, _):
        yield opened


async def create(store: EventStore, customer_id: str, **changes: Any) -> Outcome:
    stream_id = instance_id(customer_id)
    return await store.create(stream_id, request(customer_id=customer_id, **changes), creation_origin(stream_id))


async def plan(store: EventStore, customer_id: str, **addresses: str) -> Outcome:
    taken: dict[str, Any] = {"hostname": f"hc-{customer_id}", "vpn_ip": f"10.64.0.{customer_id}"} | addresses
    return await store.execute(instance_id(customer_id), lifecycle.plan(**taken), origin())


async def rows_of(connection: AsyncConnection, stream_id: UUID) -> dict[str, list[dict[str, Any]]]:
    """What every read table says about an instance."""
    statements = {
        "instance": "SELECT * FROM instance WHERE id = %s",
        "provision_log": "SELECT * FROM provision_log WHERE instance_id = %s ORDER BY seq",
        "reservation": "SELECT * FROM reservation WHERE instance_id = %s ORDER BY kind, value",
    }
    async with connection.cursor(row_factory=dict_row) as cursor:
        return {
            table: await (await cursor.execute(statement.encode(), (stream_id,))).fetchall()
            for table, statement in statements.items()
        }


async def beside_a_crowd(store: EventStore, *odd: Any) -> list[Any]:
    """The results of `odd` when awaited at once with a crowd of requests, which must all succeed."""
    half = len(CROWD) // 2
    crowd = [create(store, one) for one in CROWD]
    answers = await asyncio.gather(*crowd[:half], *odd, *crowd[half:], return_exceptions=True)
    bystanders = answers[:half] + answers[half + len(odd) :]
    assert [type(answer) for answer in bystanders] == [Outcome] * len(CROWD)
    return answers[half : half + len(odd)]


async def test_appends_that_come_together_share_commits(database_url: str, owner_conn: AsyncConnection) -> None:
    commits: list[dict[int, int]] = []
    async with open_store(database_url) as (_, pool):
        store = EventStore(pool, inline=inline_projections(), on_commit=commits.append)
        customers = [f"c{number}" for number in range(3 * BATCH_MAX)]

        await asyncio.gather(*(create(store, one) for one in customers))

    log = await check_log(owner_conn)
    assert log.versions == {instance_id(one): 1 for one in customers}
    assert len(commits) < len(customers) / 8
    assert len({command["recorded_at"] for command in log.commands.values()}) < len(customers)


async def test_appends_that_wait_for_a_flush_keep_their_order(
    store: EventStore, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "BATCH_MAX", 1)
    lane = lane_of(instance_id("c0"))
    customers = [one for one in (f"c{number}" for number in range(400)) if lane_of(instance_id(one)) == lane]

    await asyncio.gather(*(create(store, one) for one in customers))

    found = await owner_conn.execute("SELECT stream_id FROM command WHERE lane = %s ORDER BY first_seq", (lane,))
    assert [stream_id for (stream_id,) in await found.fetchall()] == [instance_id(one) for one in customers]


async def test_a_lost_race_a_repeat_and_a_taken_address_do_not_disturb_the_others(
    store: EventStore, owner_conn: AsyncConnection
) -> None:
    for one in ("1", "2", "3"):
        await create(store, one)
    past = await store.load(instance_id("2"))
    await plan(store, "1")
    await store.execute(instance_id("2"), lifecycle.delete(), origin())
    before = [await rows_of(owner_conn, instance_id(one)) for one in ("1", "2", "3")]

    repeat, conflict, taken = await beside_a_crowd(
        store,
        create(store, "1", at_ms=lifecycle.NOW_MS + 1),
        store.execute_at(past, instance_id("2"), lifecycle.plan(hostname="hc-2", vpn_ip="10.64.0.2"), origin()),
        plan(store, "3", vpn_ip="10.64.0.1"),
    )

    assert repeat.duplicate
    assert isinstance(conflict, VersionConflict)
    assert isinstance(taken, ReservationTaken)
    assert [await rows_of(owner_conn, instance_id(one)) for one in ("1", "2", "3")] == before
    log = await check_log(owner_conn)
    assert log.versions == {instance_id("1"): 4, instance_id("2"): 2, instance_id("3"): 1} | {
        instance_id(one): 1 for one in CROWD
    }


@pytest.mark.parametrize(
    "unstorable",
    [{"agent_name": "a\0b"}, {"agent_name": "\ud800"}, {"idempotency_key": "".join(map(chr, range(0x4E00, 0x5E00)))}],
    ids=["a NUL character", "half a surrogate pair", "too long for an index"],
)
async def test_a_value_that_cannot_be_stored_is_refused_without_affecting_other_appends(
    store: EventStore, owner_conn: AsyncConnection, unstorable: dict[str, str]
) -> None:
    (refused,) = await beside_a_crowd(store, create(store, "odd", **unstorable))

    assert isinstance(refused, Rejected)
    assert instance_id("odd") not in (await check_log(owner_conn)).versions
    assert not any((await rows_of(owner_conn, instance_id("odd"))).values())


async def test_the_store_continues_after_an_append_that_could_not_be_encoded(store: EventStore) -> None:
    first = asyncio.create_task(create(store, "odd", agent_name="\ud800"))
    second = asyncio.create_task(create(store, "odder", agent_name="\udfff"))
    third = asyncio.create_task(create(store, "ada"))

    answers = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(answer) for answer in answers] == [Rejected, Rejected, Outcome]


async def test_two_concurrent_commands_for_one_instance_are_both_applied(store: EventStore) -> None:
    await create(store, "ada")
    ada = instance_id("ada")

    changes = [c.ChangeConsent(at_ms=lifecycle.NOW_MS, granted=True), lifecycle.configure(agent_name="Ada's")]
    await asyncio.gather(*(store.execute(ada, change, origin()) for change in changes))

    state = await store.load(ada)
    assert state is not None
    assert (state.version, state.consent_debug_access, state.agent_name) == (3, True, "Ada's")


async def test_exactly_one_of_many_concurrent_reservations_of_an_address_succeeds(
    store: EventStore, owner_conn: AsyncConnection
) -> None:
    customers = [f"{number}" for number in range(12)]
    await asyncio.gather(*(create(store, one) for one in customers))

    answers = await asyncio.gather(
        *(plan(store, one, vpn_ip="10.64.0.200") for one in customers), return_exceptions=True
    )

    winners = [one for one, answer in zip(customers, answers, strict=True) if isinstance(answer, Outcome)]
    assert len(winners) == 1
    assert sum(isinstance(answer, ReservationTaken) for answer in answers) == len(customers) - 1
    held = await (await owner_conn.execute("SELECT instance_id FROM reservation WHERE kind = 'vpn_ip'")).fetchall()
    assert held == [(instance_id(winners[0]),)]


async def test_a_released_address_can_be_reserved_by_another_instance(
    store: EventStore, owner_conn: AsyncConnection
) -> None:
    await create(store, "1")
    await plan(store, "1")
    for command in (lifecycle.delete(), *map(lifecycle.teardown, lifecycle.TEARDOWN_STEPS)):
        await store.execute(instance_id("1"), command, origin())
    await create(store, "2")

    await plan(store, "2", vpn_ip="10.64.0.1")

    held = await (
        await owner_conn.execute(
            "SELECT instance_id, released_at IS NULL FROM reservation WHERE value = '10.64.0.1' ORDER BY released_at"
        )
    ).fetchall()
    assert held == [(instance_id("1"), False), (instance_id("2"), True)]


async def test_batches_that_reserve_the_same_addresses_in_different_orders_do_not_deadlock(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    addresses = ["10.64.1.1", "10.64.1.2", "10.64.1.3"]
    async with open_store(database_url) as (one, _), open_store(database_url) as (other, _):
        by_lane = {lane_of(instance_id(name)): name for name in (f"{number}" for number in range(100))}
        these, those = list(by_lane.values())[:3], list(by_lane.values())[3:6]
        for store, customers in ((one, these), (other, those)):
            for customer in customers:
                await create(store, customer)

        # Another transaction holds the middle one for a moment, so that both batches stop half way.
        async with await AsyncConnection.connect(database_url) as holder:
            await holder.execute(
                "INSERT INTO reservation (kind, value, instance_id, version, reserved_at)"
                " VALUES ('vpn_ip', '10.64.1.2', gen_random_uuid(), 1, now())"
            )
            planning = asyncio.gather(
                *(plan(one, name, vpn_ip=ip) for name, ip in zip(these, addresses, strict=True)),
                *(plan(other, name, vpn_ip=ip) for name, ip in zip(those, reversed(addresses), strict=True)),
                return_exceptions=True,
            )
            await until(lambda: waiting_for_locks(owner_conn, 2))
            await holder.rollback()
        answers = await planning

    deadlocks = await owner_conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert await deadlocks.fetchone() == (0,)
    assert sum(isinstance(answer, Outcome) for answer in answers) == len(addresses)
    assert sum(isinstance(answer, ReservationTaken) for answer in answers) == len(addresses)


async def waiting_for_locks(connection: AsyncConnection, count: int) -> bool:
    waiting = await connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return await waiting.fetchone() == (count,)


@pytest.mark.parametrize("known_to_be_empty", [False, True])
async def test_an_append_scans_neither_a_whole_table_nor_a_whole_lane(
    database_url: str, owner_conn: AsyncConnection, *, known_to_be_empty: bool
) -> None:
    if known_to_be_empty:
        # For a table without statistics the server expects ten pages.
        await owner_conn.execute("VACUUM ANALYZE command, lane, stream")
    await fill(database_url)

    scans = await owner_conn.execute(
        "SELECT relname, seq_tup_read FROM pg_stat_user_tables"
        " WHERE relname IN ('event', 'command', 'stream', 'instance', 'provision_log', 'reservation') AND seq_tup_read > 0"
    )
    assert await scans.fetchall() == []
    read = await owner_conn.execute(
        "SELECT sum(idx_tup_read) <= 2 * (SELECT count(*) FROM command) FROM pg_stat_user_indexes WHERE relname = 'command'"
    )
    assert await read.fetchone() == (True,), "the command itself, in case it is a repeat, and the last one of its lane"


async def test_an_append_updates_no_rows_except_those_of_its_instance(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    await fill(database_url)

    # An old version of a row stays while an older transaction is open, and every read of the row has to pass it.
    updated = await owner_conn.execute("SELECT relname FROM pg_stat_user_tables WHERE n_tup_upd > 0 ORDER BY relname")
    assert await updated.fetchall() == [("instance",), ("stream",)]


async def fill(database_url: str) -> None:
    """Create instances one after another on one connection, so that its plans are made while the tables are still empty."""
    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        store = EventStore(pool, inline=inline_projections())
        for number in range(40):
            await create(store, f"{number}")
            await plan(store, f"{number}")
        await store.close()
        # The server counts once a connection has been idle for a moment, or when asked to on that connection.
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")


async def test_an_append_that_is_retried_alone_does_not_wait_for_another_lane(
    store: EventStore, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that no append that waits for a lock gives up.
    monkeypatch.setattr(committer, "LOCK_S_MAX", LONG_S)
    monkeypatch.setattr("events.batch.TRANSACTION_S_MAX", LONG_S)
    held, same, other = in_one_lane_and_another()
    async with owner_conn.transaction():
        await owner_conn.execute("SELECT FROM lane WHERE lane = %s FOR UPDATE", (lane_of(instance_id(held)),))

        # One batch, which fails as a whole. Then its last appends are retried first, and wait.
        found, odd, *waiting = (
            asyncio.create_task(creating)
            for creating in (
                create(store, other),
                create(store, "odd", agent_name="\ud800"),
                create(store, held),
                create(store, same),
            )
        )
        await until(found.done)

        with pytest.raises(Rejected):
            await odd
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)


def in_one_lane_and_another() -> tuple[str, str, str]:
    """Three customers: the instances of the first two share a lane."""
    by_lane: dict[int, list[str]] = {}
    for number in range(1_000):
        customers = by_lane.setdefault(lane_of(instance_id(f"c{number}")), [])
        customers.append(f"c{number}")
        if len(customers) == 2:
            return customers[0], customers[1], next(names[0] for names in by_lane.values() if names is not customers)
    raise AssertionError("a thousand instances share no lane")
