"""A rebuild whose lanes the workers fold, and what it reports if they do not."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import dramatiq
import msgspec
import psycopg
import pytest
from structlog.testing import capture_logs

from hydracore import settings as configuration
from hydracore.settings import Settings
from projections import generations
from projections.definition import Projection
from projections.errors import FoldFailed
from projections.folding import fold_lanes
from projections.generations import Progress
from projections.instance import InstanceProjection
from projections.rebuild import rebuild
from projections.report import Report
from tests.command import Command, Ended, run_forked
from tests.next_release import InstanceV2
from tests.rebuilding import QUIET, rebuild_here, write_instances
from tests.store_commands import open_store
from tests.waiting import NICE_PATIENCE_S, until
from workers.actors import DepsMiddleware, declare_actors
from workers.broker import redis_broker
from workers.distributed_folding import LaneFolder, fold_distributed


def environ(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "HYDRACORE_DATABASE_URL": database_url,
        "HYDRACORE_REDIS_URL": redis_url,
        "HYDRACORE_MASTER_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
        "HYDRACORE_PUBLIC_URL": "http://127.0.0.1:1",
        "HYDRACORE_CLOUDSIM_URL": "http://127.0.0.1:1",
        "HYDRACORE_CLOUDSIM_TOKEN": "x",
    }


@pytest.fixture
async def settings(database_url: str, redis_url: str) -> Settings:
    """The settings of an installation with some instances."""
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=8)
    return configuration.load(environ(database_url, redis_url))


@asynccontextmanager
async def worker_here(settings: Settings, redis_url: str) -> AsyncGenerator[None]:
    """A worker in this process."""
    middleware = DepsMiddleware(settings, environ(settings.database_url, redis_url))
    broker = redis_broker(redis_url, middleware)
    declare_actors(broker, middleware)
    worker = dramatiq.Worker(broker, worker_threads=1)
    await asyncio.to_thread(worker.start)
    try:
        yield
    finally:
        await asyncio.to_thread(worker.stop)
        broker.close()


async def distributed(settings: Settings, projection: Projection, told: list[str]) -> Report:
    folding = fold_distributed(settings, told.append)
    return await rebuild(settings.database_url, projection, folding=folding, callbacks=QUIET)


@pytest.mark.long
@pytest.mark.timeout(3 * NICE_PATIENCE_S)
async def test_workers_fold_the_lanes_or_report_why_they_cannot(
    settings: Settings, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    env = os.environ | environ(settings.database_url, redis_url)

    async def rebuilt(*options: str) -> Ended:
        words = ("projections", "rebuild", "instance", "--distributed", *options)
        return await asyncio.to_thread(run_forked, *words, env=env, patience_s=NICE_PATIENCE_S)

    with Command.started("worker", env=env) as worker:
        status, output, _ = await rebuilt("--json")
        (report,) = json.loads(output)
        assert (status, report["drifted"], report["rows_compared"]) == (0, 0, 8)
        assert report["stopped_s"] is not None

        await owner_conn.execute("DELETE FROM event WHERE ctid = (SELECT min(ctid) FROM event)")
        status, _, errors = await rebuilt()
        assert (status, errors[:40]) == (3, "hydracore: Folding the lanes of instance")
        assert "LogCorrupted: Lane" in errors
        worker.signal(signal.SIGTERM)
        assert (await worker.ended()).status == 0


async def test_folding_a_claim_may_exceed_the_time_limit_of_other_actors(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.actors.CALL_S_MAX", 0.0)
    monkeypatch.setattr("workers.distributed_folding.IDLE_S_MAX", 10.0)

    async with worker_here(settings, redis_url):
        report = await distributed(settings, InstanceProjection(), [])

    assert (report.drifted, report.stopped_s is not None) == (0, True)


async def test_a_rebuild_fails_with_the_reason_if_no_worker_has_its_version(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.IDLE_S_MAX", 1.0)

    async with worker_here(settings, redis_url):
        with pytest.raises(FoldFailed, match="a worker's release does not have version 2 of it"):
            await distributed(settings, InstanceV2(), [])


async def test_a_worker_s_refusal_is_reported_once_and_another_process_may_fold_the_lanes(
    settings: Settings, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    told = list[str]()
    async with worker_here(settings, redis_url):
        rebuilding = asyncio.create_task(distributed(settings, InstanceV2(), told))
        await until(lambda: told or rebuilding.done())
        build = await generations.newest_in_states(owner_conn, "instance", "folding")
        assert build is not None
        await asyncio.to_thread(fold_lanes, settings.database_url, InstanceV2(), build)
        report = await rebuilding

    assert (report.version, report.drifted, report.stopped_s is not None) == (2, 0, True)
    assert [text.partition(";")[0] for text in told] == ["instance: a worker's release does not have version 2 of it"]


async def test_a_rebuild_without_workers_fails_and_can_be_resumed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.IDLE_S_MAX", 0.0)

    with pytest.raises(FoldFailed, match="is a worker running"):
        await distributed(settings, InstanceProjection(), [])

    assert (await rebuild_here(settings.database_url, InstanceProjection())).resumed


async def test_claims_without_progress_are_reported_and_fail_the_rebuild_after_a_limit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.HINT_S", 0.1)
    monkeypatch.setattr("workers.distributed_folding.IDLE_S_MAX", 0.2)
    told = list[str]()
    async with await psycopg.AsyncConnection.connect(settings.database_url) as hanging:

        async def fold(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
            await hanging.execute("SELECT FROM projection_lane WHERE folded_at IS NULL FOR UPDATE")
            await fold_distributed(settings, told.append)(projection, build, progress)

        rebuilding = asyncio.create_task(
            rebuild(settings.database_url, InstanceProjection(), folding=fold, callbacks=QUIET)
        )
        await until(lambda: told or rebuilding.done())
        assert "although workers have claimed" in told[0]

        monkeypatch.setattr("workers.distributed_folding.CLAIM_S_MAX", 0.3)
        with pytest.raises(FoldFailed, match="they hang"):
            await rebuilding

    assert len(told) == 1


async def test_only_repeated_failures_without_a_folded_lane_in_between_end_a_rebuild(
    settings: Settings, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.HINT_S", 0.0)
    build = await generations.begin(owner_conn, InstanceProjection())
    folded, looks, told = 0, 0, list[str]()

    async def progress() -> Progress:
        nonlocal looks
        looks += 1
        return Progress(lanes=3, lanes_folded=folded, events=3, events_folded=folded)

    async def say(reason: str, *, failed: bool) -> None:
        said = json.dumps({"follower": build.follower, "reason": reason, "failed": failed})
        await owner_conn.execute("SELECT pg_notify('hydracore_fold', %s)", (said,))

    folding = asyncio.ensure_future(fold_distributed(settings, told.append)(InstanceProjection(), build, progress))
    await until(lambda: looks)
    for lanes in (1, 2):
        await say("no room", failed=True)
        await say("no room", failed=True)
        # Once this report has arrived, those before it have been received, too.
        await say(f"other code {lanes}", failed=False)
        await until(lambda lanes=lanes: len(told) == lanes or folding.done())
        folded, before = lanes, looks
        await until(lambda before=before: looks > before + 1 or folding.done())
    assert not folding.done()

    for _ in range(3):
        await say("no room", failed=True)
    with pytest.raises(FoldFailed, match="no room"):
        await folding


async def test_a_worker_kills_a_frozen_folding_process_and_continues(
    settings: Settings, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.CLAIM_S_MAX", 0.5)
    build = await generations.begin(owner_conn, InstanceProjection())
    others = set(multiprocessing.active_children())
    helping = asyncio.create_task(LaneFolder(settings).fold_for_hint(build.name, build.number))
    await until(lambda: set(multiprocessing.active_children()) - others)
    (folding,) = set(multiprocessing.active_children()) - others
    assert folding.pid is not None
    os.kill(folding.pid, signal.SIGSTOP)

    with capture_logs() as said:
        await helping

    assert folding.exitcode == -signal.SIGKILL
    assert [(line["log_level"], line["event"], line.get("reason")) for line in said] == [
        ("warning", "fold_failed", "a process ended with exit code -9")
    ]


async def test_a_worker_that_folds_starts_no_second_process_for_another_hint(
    settings: Settings, owner_conn: psycopg.AsyncConnection
) -> None:
    build = await generations.begin(owner_conn, InstanceProjection())
    folder, others = LaneFolder(settings), set(multiprocessing.active_children())

    def processes() -> int:
        return len(set(multiprocessing.active_children()) - others)

    async with await psycopg.AsyncConnection.connect(settings.database_url) as holder:
        await holder.execute("SELECT FROM projection_lane FOR UPDATE")
        first = asyncio.create_task(folder.fold_for_hint(build.name, build.number))
        await until(processes)
        second = asyncio.create_task(folder.fold_for_hint(build.name, build.number))
        await until(lambda: second.done() or processes() > 1)

        assert processes() == 1
    await asyncio.gather(first, second)


async def test_without_redis_a_rebuild_says_so_and_continues_with_lanes_that_are_folded_elsewhere(
    settings: Settings,
) -> None:
    away = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:1/0")
    told, helpers = list[str](), list[asyncio.Task[int]]()

    async def fold(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        def tell(text: str) -> None:
            told.append(text)
            helpers.append(asyncio.create_task(asyncio.to_thread(fold_lanes, away.database_url, projection, build)))

        await fold_distributed(away, tell)(projection, build, progress)

    report = await rebuild(away.database_url, InstanceProjection(), folding=fold, callbacks=QUIET)

    assert (report.drifted, report.stopped_s is not None) == (0, True)
    assert [text.partition(";")[0] for text in told] == ["Redis does not answer (ConnectionError)"]
    assert sum([await helper for helper in helpers]) > 0


async def test_a_rebuild_without_redis_and_workers_fails_with_redis_as_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distributed_folding.IDLE_S_MAX", 0.0)
    away = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:1/0")

    with pytest.raises(FoldFailed, match="Redis does not answer"):
        await distributed(away, InstanceProjection(), [])
