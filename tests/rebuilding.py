"""Shared helpers for tests of rebuilds: a log with all kinds of events, and folding without child processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from click.testing import CliRunner, Result
from psycopg_pool import AsyncConnectionPool

from events.store import EventStore
from hydracore.cli import main
from projections.definition import Projection
from projections.folding import fold_lanes
from projections.followed import followed_projections
from projections.follower import Follower
from projections.generations import Generation, Progress
from projections.rebuild import Folding, ProgressCallbacks, dry_run, rebuild
from projections.report import Report
from tests import lifecycle
from tests.store_commands import create_instance, origin

QUIET = ProgressCallbacks(phase=lambda _: None, folded=lambda _: None)


def fold_here(database_url: str) -> Folding:
    """Folds in a thread of this process: nothing has to be started."""

    async def fold(projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        await asyncio.to_thread(fold_lanes, database_url, projection, build)
        await progress()

    return fold


async def rebuild_here(database_url: str, projection: Projection, *, accept_drift: bool = False) -> Report:
    return await rebuild(
        database_url, projection, folding=fold_here(database_url), callbacks=QUIET, accept_drift=accept_drift
    )


async def dry_run_here(database_url: str, projection: Projection) -> Report:
    return await dry_run(database_url, projection, folding=fold_here(database_url), callbacks=QUIET)


async def write_instances(store: EventStore, *, count: int, start: int = 0) -> list[UUID]:
    """Instances at different points of their lifecycle; addresses of deleted ones are taken again by later ones."""
    ids = list[UUID]()
    for number in range(start, start + count):
        instance_id = await create_instance(store, customer_id=f"customer-{number}")
        ids.append(instance_id)
        if number % 4 == 0:
            continue
        plan = lifecycle.plan(hostname=f"host-{number % 7}-{number}", vpn_ip=f"10.64.{number // 200}.{number % 200}")
        await store.execute(instance_id, plan, origin("worker"))
        if number % 4 == 1:
            continue
        for command in (lifecycle.created(server_id=f"server-{number}"), lifecycle.enrol(), lifecycle.usage(1)):
            await store.execute(instance_id, command, origin("agent:x"))
        if number % 4 == 3:
            for command in lifecycle.TORN_DOWN[len(lifecycle.RUNNING) :]:
                await store.execute(instance_id, command, origin("worker"))
            await store.execute(instance_id, lifecycle.finish(), origin("worker"))
    return ids


async def follow_all(pool: AsyncConnectionPool) -> None:
    """Bring every followed projection up to the log."""
    follower = Follower(pool, *followed_projections())
    await follower.create_checkpoints()
    await follower.catch_up()


async def run_projections_command(database_url: str, *words: str) -> Result:
    """`hydracore projections ...` in this process; a command has an event loop of its own, so it runs in a thread."""
    env = {"HYDRACORE_DATABASE_URL": database_url}
    return await asyncio.to_thread(CliRunner().invoke, main, ["projections", *words], env=env)
