"""Periodic duties that belong to no instance, once the relay that does them is gone."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection

from hydracore.db.pool import open_pool
from hydracore.settings import Settings
from tests.waiting import until
from workers import reconciler
from workers.broker import HintSender
from workers.reconciler import Reconciler

INTERVAL_S = 3_600


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
        running = asyncio.create_task(waiting.run())
        await until(lambda: "sweep" in waiting._next_try_s)

        # The interval passes, and the other relay does nothing.
        await owner_conn.execute("UPDATE duty SET ran_at = ran_at - %s * interval '1 s'", (INTERVAL_S,))

        await until(is_done_again)
        running.cancel()
        await asyncio.wait([running])
        hints.close()
