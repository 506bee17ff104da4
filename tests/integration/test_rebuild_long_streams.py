"""Long streams under a writer: what is done while writers are blocked depends on the new events, not on the old ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import psycopg
import pytest

from bench.rebuild_log import life_of
from bench.rebuild_log import write_lives as write_log
from events import types as e
from events.store import EventStore
from projections.definition import Inline
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import rollback
from projections.reservation import ReservationProjection
from tests import lifecycle
from tests.rebuilding import dry_run_here, rebuild_here, write_instances
from tests.store_commands import NOW_MS, open_store, origin
from tests.waiting import BETWEEN_WRITES_S, POLL_S_MAX, until

#: Far more events than are written during a test, and read in several pieces.
LENGTH = 10_000


def write_long_stream(database_url: str) -> UUID:
    """A log with one instance that runs, and whose health has been changing ever since. The live tables are empty."""
    instance_id, (tenant, steps) = life_of(5)
    changes: list[e.AnyEvent] = [
        e.HealthChanged(at_ms=NOW_MS + number, health=("late", "healthy")[number % 2]) for number in range(LENGTH)
    ]
    write_log(database_url, [{instance_id: (tenant, [*steps, changes])}])
    return instance_id


@asynccontextmanager
async def written_to(database_url: str, instance_id: UUID) -> AsyncGenerator[None]:
    """While the instance's health keeps changing."""
    async with open_store(database_url) as (store, _):

        async def write_on() -> None:
            for number in itertools.count():
                await store.execute(instance_id, lifecycle.health(("late", "healthy")[number % 2]), origin("worker"))
                await asyncio.sleep(BETWEEN_WRITES_S)

        await store.load(instance_id)
        writing = asyncio.create_task(write_on())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.wait((writing,))
    assert writing.cancelled(), "it wrote all the while"


@pytest.mark.parametrize("kind", [InstanceProjection, ProvisionLogProjection])
async def test_a_long_stream_is_swapped_and_rolled_back_while_it_is_written_to(
    database_url: str, monkeypatch: pytest.MonkeyPatch, kind: type[Inline]
) -> None:
    # A swap that reads the stream from its beginning exceeds this limit.
    monkeypatch.setattr("projections.swap.READ_MAX", LENGTH // 4)
    projection = kind()
    instance_id = write_long_stream(database_url)
    await rebuild_here(database_url, projection, accept_drift=True)

    async with written_to(database_url, instance_id):
        report = await rebuild_here(database_url, projection)
        back = await rollback(database_url, projection)

    assert (report.drifted, report.stopped_s is not None, back.stopped_s is not None) == (0, True, True)
    assert (await dry_run_here(database_url, projection)).drifted == 0


#: When the attempts began that are waiting for the tables.
WAITING_SINCE = b"""
SELECT xact_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'
"""


@pytest.mark.parametrize("kind", [ProvisionLogProjection, ReservationProjection])
async def test_events_folded_by_a_swap_attempt_that_was_rolled_back_are_folded_again(
    database_url: str, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch, kind: type[Inline]
) -> None:
    # Streams come in pieces, and not all of their folds can be kept.
    monkeypatch.setattr("projections.refolding.EVENTS_MAX", 10)
    monkeypatch.setattr("projections.refolding.KEPT_MAX", 2)
    # An attempt waits for the table for longer than the test's polling interval, and nothing else ends it.
    monkeypatch.setattr("projections.swap.WAIT_S_MAX", 2 * POLL_S_MAX)
    monkeypatch.setattr("projections.swap.STOPPED_S_MAX", 60.0)
    projection = kind()
    tries = set[tuple[datetime]]()

    async def tried_twice() -> bool:
        tries.update(await (await owner_conn.execute(WAITING_SINCE)).fetchall())
        return len(tries) > 1

    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)

        async with await psycopg.AsyncConnection.connect(database_url) as reader:
            await reader.execute(f"SELECT FROM {projection.name} LIMIT 1".encode())
            rebuilding = asyncio.create_task(rebuild_here(database_url, projection))
            writing = asyncio.create_task(write_on(store))
            await until(tried_twice, poll_s=BETWEEN_WRITES_S)
            await reader.rollback()
        report = await rebuilding
        writing.cancel()
        await asyncio.wait((writing,))

    assert report.drifted == 0
    assert report.tries > 1
    assert (await dry_run_here(database_url, projection)).drifted == 0


async def write_on(store: EventStore) -> None:
    for start in itertools.count(2):
        await write_instances(store, count=1, start=start)
        await asyncio.sleep(BETWEEN_WRITES_S)
