"""The statements that find due work, one by one: no work is missed by both the relay and the reconciler, which send hints."""

from __future__ import annotations

from typing import LiteralString
from uuid import uuid4

import pytest
from msgspec.structs import replace
from psycopg import AsyncConnection

from events.ids import lane_of
from events.saga import wake_at_ms
from events.store import EventStore
from tests import lifecycle
from tests.due_instances import due_instances
from tests.store_commands import create_instance, open_store, origin, request
from tests.waiting import until
from workers.work_schedule import BACKOFF_S_MAX, WorkSchedule

ADA = lifecycle.instance_id()


@pytest.mark.parametrize("pause", ["fail", "postpone"])
async def test_a_pause_ends_when_the_step_it_was_set_for_is_recorded(database_url: str, pause: str) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        if pause == "fail":
            await schedule.record_failure(ADA, version=1, code="no_address", delay_s=60)
        else:
            await schedule.postpone(ADA, version=1, delay_s=60)
        during = await schedule.claim_due()

        # A worker records what it has done, for which no relay sends a hint, and dies before it does the next thing.
        await store.execute(ADA, lifecycle.plan(), origin("worker"))

        assert during == []
        assert await schedule.claim_due() == [ADA]
        assert await schedule.claim_due() == [], "a hint has just been sent"


async def test_failures_are_counted_anew_at_another_version_of_the_instance(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        for _ in range(3):
            await schedule.record_failure(ADA, version=1, code="no_address", delay_s=60)
        await store.execute(ADA, lifecycle.plan(), origin("worker"))
        await schedule.claim_due()

        assert await schedule.record_failure(ADA, version=4, code="timeout", delay_s=0) == 1
        await schedule.claim_due()
        assert await schedule.record_failure(ADA, version=4, code="timeout", delay_s=60) == 2


async def test_a_failure_with_another_code_starts_with_the_first_pause(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        for _ in range(5):
            await schedule.record_failure(ADA, version=1, code="server_still_there", delay_s=0.3)
        began = await (await owner_conn.execute("SELECT failing_since FROM attention")).fetchone()

        assert await schedule.record_failure(ADA, version=1, code="server_error", delay_s=15) == 1

        row = await (
            await owner_conn.execute(
                "SELECT extract(epoch FROM not_before - now())::float8 BETWEEN 10 AND 20, failing_since FROM attention"
            )
        ).fetchone()
        assert began is not None
        assert row == (True, *began), "it has been failing since the first failure"


async def test_pauses_double_with_each_failure_up_to_a_maximum(database_url: str, owner_conn: AsyncConnection) -> None:
    pauses = list[float]()
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)

        for _ in range(5):
            await schedule.record_failure(ADA, version=1, code="no_address", delay_s=10)
            pauses.append(await _pause_s(owner_conn))

    # Up to a quarter more, at random.
    wanted = (10, 20, 40, BACKOFF_S_MAX, BACKOFF_S_MAX)
    assert [least - 1 < pause < least * 1.25 for pause, least in zip(pauses, wanted, strict=True)] == [True] * 5


async def test_failures_are_remembered_through_postponements_until_the_instance_progresses(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    since = "SELECT failing_since FROM attention"
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        await schedule.record_failure(ADA, version=1, code="timeout", delay_s=1)
        await schedule.postpone(ADA, version=1, delay_s=1)
        assert await schedule.record_failure(ADA, version=1, code="timeout", delay_s=1) == 2
        before = await (await owner_conn.execute(since)).fetchone()

        await store.execute(ADA, lifecycle.plan(), origin("worker"))
        await schedule.postpone(ADA, version=4, delay_s=1)

        assert await schedule.record_failure(ADA, version=4, code="timeout", delay_s=1) == 1
        assert await (await owner_conn.execute(since)).fetchone() != before


async def test_deleting_the_working_data_of_an_instance_leaves_that_of_others(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    other = uuid4()
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        await schedule.record_failure(ADA, version=1, code="timeout", delay_s=1)
        heard = (
            "INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report) VALUES (%s, %s, now(), %s, '{}')"
        )
        for instance_id in (ADA, other):
            await owner_conn.execute(heard, (lane_of(instance_id), instance_id, lifecycle.BOOT))

        await schedule.delete_working_data(ADA)

        left = "SELECT instance_id FROM heartbeat UNION ALL SELECT instance_id FROM attention"
        assert await (await owner_conn.execute(left)).fetchall() == [(other,)]


async def test_a_late_worker_records_no_failure_for_work_that_is_over(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        for command in (
            lifecycle.plan(),
            lifecycle.failed(retryable=False),
            lifecycle.discarded(),
            lifecycle.gave_up(),
        ):
            outcome = await store.execute(ADA, command, origin("worker"))

        # A worker that was frozen at an earlier version, and one that saw the last version, for which nothing is due.
        for version in (1, outcome.state.version):
            await schedule.postpone(ADA, version=version, delay_s=1)
            assert await schedule.record_failure(ADA, version=version, code="no_address", delay_s=1) is None

        assert await (await owner_conn.execute("SELECT code FROM attention")).fetchall() == []


@pytest.mark.parametrize("pause", ["fail", "postpone"])
async def test_a_late_worker_does_not_delay_an_instance_that_has_progressed(database_url: str, pause: str) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        await store.execute(ADA, lifecycle.plan(), origin("worker"))

        # A worker that was frozen when only the request was recorded.
        if pause == "fail":
            assert await schedule.record_failure(ADA, version=1, code="no_address", delay_s=60) is None
        else:
            await schedule.postpone(ADA, version=1, delay_s=60)

        assert await schedule.claim_due() == [ADA]


async def test_a_request_made_while_the_relay_looks_is_found_due(database_url: str) -> None:
    async with open_store(database_url) as (store, pool), pool.connection() as looking, looking.transaction():
        began_ms = await _in_ms(looking, "SELECT now()")

        await _create(store, at_ms=began_ms + 1)
        await until(lambda: _is_past(looking, began_ms + 1))

        assert await due_instances(looking) == [ADA]


async def test_a_relay_sends_hints_for_work_due_at_once_except_what_a_worker_continues_by_itself(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    hinted, left = set[str](), set[str]()
    stuck = (lifecycle.request(), lifecycle.delete(), lifecycle.block("key_revoked"))
    ways = {"ada": lifecycle.DELETED, "bob": lifecycle.ATTEMPT_DISCARDED, "cleo": stuck}
    async with open_store(database_url) as (store, _):
        for customer_id, commands in ways.items():
            stream_id = lifecycle.instance_id(customer_id)
            for command in (lifecycle.request(customer_id=customer_id), *commands[1:]):
                state = (await store.execute(stream_id, command, origin())).state

                is_seen = await due_instances(owner_conn) != []

                if wake_at_ms(state) == state.updated_ms:
                    (hinted if is_seen else left).add(type(command).__name__)
                await owner_conn.execute("UPDATE checkpoint c SET seq = h.head FROM lane_head h WHERE h.lane = c.lane")

    assert hinted == {"RequestInstance", "FailAttempt", "ReportBootstrap", "RequestDeletion"}
    assert left == {"PlanServer", "RecordServerDiscarded", "RecordTeardownStep", "BlockTeardown"}


async def test_a_parked_lane_is_read_again_once_its_pause_is_over(
    database_url: str, owner_conn: AsyncConnection
) -> None:
    park = "UPDATE checkpoint SET parked_until = now() + %s * interval '1 s', error = 'a gap'"
    async with open_store(database_url) as (store, _):
        await create_instance(store)
        before = await due_instances(owner_conn)

        await owner_conn.execute(park, (3_600,))
        meanwhile = await due_instances(owner_conn)
        await owner_conn.execute(park, (-1,))

        assert (before, meanwhile, await due_instances(owner_conn)) == ([ADA], [], [ADA])


async def _pause_s(connection: AsyncConnection) -> float:
    row = await (
        await connection.execute("SELECT extract(epoch FROM not_before - now())::float8 FROM attention")
    ).fetchone()
    assert row is not None
    return row[0]


async def _create(store: EventStore, *, at_ms: int) -> None:
    await store.create(ADA, replace(request(), at_ms=at_ms), origin())


async def _is_past(connection: AsyncConnection, at_ms: int) -> bool:
    return await _in_ms(connection, "SELECT clock_timestamp()") > at_ms


async def _in_ms(connection: AsyncConnection, time: LiteralString) -> int:
    row = await (await connection.execute(time)).fetchone()
    assert row is not None
    return int(row[0].timestamp() * 1000)
