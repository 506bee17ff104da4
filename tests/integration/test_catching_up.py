"""Events appended while a build was folded are added to it: all of them, no others, and only few while writers are stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import psycopg
import pytest

from events.store import EventStore
from projections import swap
from projections.activity import Activity
from projections.candidate import Candidate
from projections.definition import Projection
from projections.generations import Generation, Progress
from projections.instance import InstanceProjection
from projections.provision_log import ProvisionLogProjection
from projections.rebuild import Folding, rebuild
from tests import lives
from tests.rebuilding import QUIET, compared, fold_here, follow_all, rebuilt, write_lives
from tests.requests_to_log import open_store, origin


@pytest.mark.parametrize(("come", "tries"), [(1, 1), (3, 2)], ids=["few", "many"])
async def test_a_swap_with_too_many_new_events_releases_the_writers_and_tries_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, come: int, tries: int
) -> None:
    monkeypatch.setattr(swap, "READ_MAX", 2)
    # However busy the machine is, writers are not released because of the time.
    monkeypatch.setattr(swap, "STOPPED_S_MAX", 60.0)
    async with open_store(database_url) as (store, _):
        await write_lives(store, count=4)
        write_before_the_first_try(monkeypatch, store, requests=come)

        report = await rebuilt(database_url, InstanceProjection())

        assert (report.generation, report.tries) == (2, tries)
        assert (await compared(database_url, InstanceProjection())).drifted == 0


async def test_a_build_takes_no_event_that_the_live_tables_do_not_have(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        _, _, running, _ = await write_lives(store, count=4)
        await follow_all(pool)

        async def go_on() -> None:
            await store.execute(running, lives.usage(2), origin("agent:x"))
            await follow_all(pool)
            await store.execute(running, lives.usage(3), origin("agent:x"))

        report = await rebuild(
            database_url, Activity(), folding=folded_before(go_on, fold_here(database_url)), callbacks=QUIET
        )

        assert report.generation == 2
        await follow_all(pool)
        assert (await compared(database_url, Activity())).drifted == 0


async def test_catching_up_writes_only_the_new_rows_of_a_stream(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        _, _, running, _ = await write_lives(store, count=4)
        kept = set[tuple[object, ...]]()

        async def rows(schema: str) -> set[tuple[object, ...]]:
            query = f"SELECT seq, ctid FROM {schema}.provision_log WHERE instance_id = %s"  # noqa: S608 - of this test
            return set(await (await owner_conn.execute(query.encode(), (running,))).fetchall())

        async def go_on() -> None:
            kept.update(await rows("provision_log_g2"))
            await store.execute(running, lives.configure(agent_name="new"), origin())

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
            await write_lives(store, count=1, start=left.pop())
        return await stop(connection, candidate)

    monkeypatch.setattr(swap, "_stop_writers", write_and_stop)


def folded_before(go_on: Callable[[], Awaitable[None]], folding: Folding) -> Folding:
    """Calls `go_on` once all is folded."""

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        await folding(projection, build, progress)
        await go_on()

    return fold
