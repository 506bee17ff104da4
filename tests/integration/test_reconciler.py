"""Periodic duties that belong to no instance: once the relay that does them is gone, and when one could not be done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing

import pytest
from psycopg import AsyncConnection
from redis.asyncio import Redis
from structlog.testing import capture_logs

from hydracore.db.pool import open_pool
from hydracore.embedded.ports import free_port
from hydracore.settings import Settings
from tests.waiting import until
from workers import reconciler
from workers.broker import QUEUE, HintSender
from workers.reconciler import Reconciler

INTERVAL_S = 3_600


@asynccontextmanager
async def reconciling(reconciler: Reconciler) -> AsyncGenerator[None]:
    running = asyncio.create_task(reconciler.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_duty_that_another_relay_no_longer_does_is_taken_over_once_it_is_due(
    database_url: str, redis_url: str, owner_conn: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "TRIES_PER_INTERVAL", 100_000)
    # Another relay has just done it.
    await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('sweep', now())")

    async def is_done_again() -> bool:
        looked = await owner_conn.execute("SELECT FROM duty WHERE name = 'sweep' AND ran_at > now() - interval '1 min'")
        return looked.rowcount > 0

    async with open_pool(database_url, role="hydracore_app", application="test", size=2) as pool:
        hints = HintSender(redis_url)
        waiting = Reconciler(pool, hints, Settings(database_url=database_url, sweep_interval_s=INTERVAL_S))
        async with reconciling(waiting):
            await until(lambda: "sweep" in waiting._next_try_s)

            # The interval passes, and the other relay does nothing.
            await owner_conn.execute("UPDATE duty SET ran_at = ran_at - %s * interval '1 s'", (INTERVAL_S,))

            await until(is_done_again)
        hints.close()


@pytest.mark.parametrize(("is_away", "logged"), [(True, "reconciler_waits"), (False, "queue_full")])
async def test_a_sweep_whose_hint_could_not_be_sent_stays_due(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, *, is_away: bool, logged: str
) -> None:
    monkeypatch.setattr(reconciler, "TRIES_PER_INTERVAL", 100_000)
    settings = Settings(database_url=database_url, sweep_interval_s=INTERVAL_S)

    async with (
        open_pool(database_url, role="hydracore_app", application="test", size=2) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        nowhere = f"redis://127.0.0.1:{free_port()}/0"
        with closing(HintSender(nowhere if is_away else redis_url)) as hints, monkeypatch.context() as full:
            full.setattr(HintSender, "BACKLOG_MAX", 0)
            async with reconciling(Reconciler(pool, hints, settings)):
                with capture_logs() as lines:
                    await until(lambda: any(line["event"] == logged for line in lines))

        with closing(HintSender(redis_url)) as hints:
            async with reconciling(Reconciler(pool, hints, settings)):
                await until(lambda: redis.llen(f"hydracore:{QUEUE}"))
