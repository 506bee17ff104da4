"""Events appended while a build was folded are added to it: all of them, no others, and only few while writers are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from events.pacing import Pace
from events.store import EventStore
from projections import generations, swap
from projections.activity import Activity
from projections.candidate import Candidate
from projections.catching_up import CatchUpStep
from projections.definition import Projection
from projections.errors import RebuildLockLost
from projections.folding import fold_lanes
from projections.generations import Generation, Progress
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import Folding, rebuild
from projections.rebuild_lock import connect
from tests import lifecycle
from tests.rebuilding import QUIET, dry_run_here, fold_here, follow_all, rebuild_here, write_instances
from tests.store_commands import open_store, origin
from tests.waiting import until

WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.parametrize(("come", "tries"), [(1, 1), (3, 2)], ids=["few", "many"])
async def test_a_swap_with_too_many_new_events_releases_the_writers_and_tries_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, come: int, tries: int
) -> None:
    monkeypatch.setattr(swap, "READ_MAX", 2)
    # However busy the machine is, writers are not released because of the time.
    monkeypatch.setattr(swap, "STOPPED_S_MAX", 60.0)
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=4)
        write_before_the_first_try(monkeypatch, store, requests=come)

        report = await rebuild_here(database_url, InstanceProjection())

        assert (report.generation, report.tries) == (2, tries)
        assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0


async def test_a_build_takes_no_event_that_the_live_tables_do_not_have(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        _, _, running, _ = await write_instances(store, count=4)
        await follow_all(pool)

        async def go_on() -> None:
            await store.execute(running, lifecycle.usage(2), origin("agent:x"))
            await follow_all(pool)
            await store.execute(running, lifecycle.usage(3), origin("agent:x"))

        report = await rebuild(
            database_url, Activity(), folding=folded_before(go_on, fold_here(database_url)), callbacks=QUIET
        )

        assert report.generation == 2
        await follow_all(pool)
        assert (await dry_run_here(database_url, Activity())).drifted == 0


async def test_concurrent_rebuilds_of_one_build_count_no_event_twice(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    """As where a rebuild has lost its lock between two of its steps, and another has begun."""
    build = await generations.begin(owner_conn, Activity())
    await asyncio.to_thread(fold_lanes, database_url, Activity(), build)
    build = await generations.index(owner_conn, Activity(), build)
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)

    async def step(connection: psycopg.AsyncConnection) -> CatchUpStep:
        candidate = Candidate.of(Activity(), build, None, Pace(full_speed=True))
        async with connection.transaction():
            return await candidate.step(connection, await candidate.live_positions(connection))

    async def waits() -> bool:
        return (await owner_conn.execute(WAITING)).rowcount > 0

    async with await connect(database_url) as first, await connect(database_url) as second:
        async with first.transaction():
            added = await step(first)
            adding = asyncio.create_task(step(second))
            await until(waits)
        added_again = await adding

        assert (added.events > 0, added_again.events) == (True, 0)
        report = await dry_run_here(database_url, Activity())
        assert (report.resumed, report.drifted) == (True, 0)

        await generations.drop(owner_conn, build)
        with pytest.raises(RebuildLockLost):
            await step(second)


async def test_catching_up_writes_only_the_new_rows_of_a_stream(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        _, _, running, _ = await write_instances(store, count=4)
        kept = set[tuple[object, ...]]()

        async def rows(schema: str) -> set[tuple[object, ...]]:
            query = f"SELECT seq, ctid FROM {schema}.provision_log WHERE instance_id = %s"  # noqa: S608 - of this test
            return set(await (await owner_conn.execute(query.encode(), (running,))).fetchall())

        async def go_on() -> None:
            kept.update(await rows("provision_log_g2"))
            await store.execute(running, lifecycle.configure(agent_name="new"), origin())

        await rebuild(
            database_url,
            ProvisionLogProjection(),
            folding=folded_before(go_on, fold_here(database_url)),
            callbacks=QUIET,
        )

    assert len(kept) > 1
    assert len(await rows("public") - kept) == 1


def write_before_the_first_try(monkeypatch: pytest.MonkeyPatch, store: EventStore, *, requests: int) -> None:
    """Request so many instances right before writers are stopped for the first time."""
    stop, left = swap._stop_writers, [4 * number for number in range(1, requests + 1)]

    async def write_and_stop(connection: psycopg.AsyncConnection, candidate: Candidate) -> dict[int, int]:
        while left:
            await write_instances(store, count=1, start=left.pop())
        return await stop(connection, candidate)

    monkeypatch.setattr(swap, "_stop_writers", write_and_stop)


def folded_before(go_on: Callable[[], Awaitable[None]], folding: Folding) -> Folding:
    """Calls `go_on` once all is folded."""

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        await folding(projection, build, progress)
        await go_on()

    return fold
