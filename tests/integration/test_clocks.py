"""Clocks that disagree or go back do not delay work that is due."""

from __future__ import annotations

import asyncio
import time
from typing import LiteralString

import psycopg
import pytest
from msgspec.structs import replace

from events import commands as c
from events.retries import run, with_retries
from events.sql import Statements
from events.state import TEARDOWN_STEPS
from hydracore.api import heartbeat_reception
from tests import lifecycle
from tests.due_instances import due_instances
from tests.stack import Stack
from tests.store_commands import create_instance, open_store, origin, request
from tests.waiting import until
from workers.advance import advance
from workers.sql import OPERATIONS
from workers.work_schedule import BACKOFF_S_MAX, WorkSchedule

ADA = lifecycle.instance_id()
HOUR_MS = 3_600_000
GAP_S = 0.5

FAILED_WITHOUT_A_SERVER = (lifecycle.request(), lifecycle.plan(), lifecycle.failed(retryable=False))
VERIFIED_ABSENT = (
    *(lifecycle.request(), lifecycle.plan(), lifecycle.created(), lifecycle.delete()),
    *map(lifecycle.teardown, TEARDOWN_STEPS[: TEARDOWN_STEPS.index("absence_verified")]),
)


async def test_a_request_made_by_a_clock_that_is_ahead_is_due_at_once(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    (ahead_ms,) = await one(owner_conn, "SELECT (extract(epoch FROM now() + interval '1 h') * 1000)::bigint")
    async with open_store(database_url) as (store, pool):
        assert isinstance(ahead_ms, int)
        await store.create(ADA, replace(request(), at_ms=ahead_ms), origin())

        assert await with_retries(pool, due_instances) == [ADA]
        assert await WorkSchedule(pool).claim_due() == [ADA]
        assert await WorkSchedule(pool).claim_due() == [], "a hint has just been sent"


async def test_the_recorded_time_of_a_lane_does_not_go_back_with_the_clock(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await create_instance(store)
        before = await one(
            owner_conn,
            "UPDATE command SET recorded_at = now() + interval '1 h' RETURNING recorded_at, recorded_at",
        )

        await store.execute(ADA, lifecycle.delete(), origin())

    written = "SELECT h.recorded_at, e.recorded_at FROM lane_head h JOIN event e ON e.lane = h.lane AND e.seq = h.head"
    assert await one(owner_conn, written) == before


async def test_a_pause_that_a_clock_change_made_longer_than_the_longest_is_ignored(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        await schedule.postpone(ADA, version=1, delay_s=BACKOFF_S_MAX * 60)
        await schedule.record_failure(ADA, version=1, code="locked", delay_s=BACKOFF_S_MAX)
        assert await schedule.claim_due() == []

        await owner_conn.execute("UPDATE attention SET not_before = not_before + interval '1 h'")

        assert await schedule.claim_due() == [ADA]
        assert await schedule.claim_due() == [], "a hint has just been sent"


async def test_a_duty_whose_last_run_is_in_the_future_is_due(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (_, pool):
        await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('sweep', now() + interval '1 h')")

        taken = [await run(pool, OPERATIONS["take_duty"], {"name": "sweep", "interval_s": 60}) for _ in range(2)]

        assert taken == [[("sweep",)], []]


@pytest.mark.parametrize(
    ("look", "later"),
    [
        ("record_sighting", "UPDATE orphan SET first_seen_at = now() + interval '1 h'"),
        ("record_missing", "UPDATE missing_server SET first_missed_at = now() + interval '1 h'"),
    ],
)
async def test_a_sighting_with_a_first_time_in_the_future_counts_from_now(
    database_url: str, owner_conn: psycopg.AsyncConnection, look: str, later: LiteralString
) -> None:
    statement, server = Statements("workers", "sweep.sql")[look], {"provider": "cloudsim", "server_id": "1"}
    async with open_store(database_url) as (_, pool):
        assert await run(pool, statement, server) == [(0.0,)]
        await owner_conn.execute(later)

        assert await run(pool, statement, server) == [(0.0,)]
        ((age_s,),) = await run(pool, statement, server)
        assert age_s > 0


async def test_heartbeat_reception_that_began_in_the_future_counts_from_now(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("INSERT INTO hearing (since, until) SELECT now() + interval '1 h', now() + interval '2 h'")

    async with open_store(database_url) as (_, pool):
        listening = asyncio.create_task(heartbeat_reception.keep_recording(pool))
        await until(lambda: one(owner_conn, "SELECT true FROM hearing WHERE since <= now() AND until <= now()"))
        listening.cancel()


@pytest.mark.parametrize(
    ("way", "status"),
    [(FAILED_WITHOUT_A_SERVER, "failed"), (VERIFIED_ABSENT, "deleted")],
    ids=["after a failed attempt", "after a deletion"],
)
async def test_verifying_that_a_server_is_absent_does_not_wait_for_clocks_to_agree(
    stack: Stack, database_url: str, way: tuple[c.AnyCommand, ...], status: str
) -> None:
    async with stack.deps(database_url=database_url, provider_timeout_s=str(GAP_S)) as deps:
        for command in way:
            await deps.store.execute(ADA, replace(command, at_ms=deps.now_ms() + HOUR_MS), deps.origin(ADA))

        began_s = time.monotonic()
        await advance(deps, ADA)

        state = await deps.store.load(ADA)
        assert state is not None
        assert state.status == status
        # A create that may be in transit is still waited for.
        assert time.monotonic() - began_s >= GAP_S


async def one(connection: psycopg.AsyncConnection, statement: LiteralString) -> tuple[object, ...]:
    return await (await connection.execute(statement)).fetchone() or ()
