"""The lanes of a frozen process go to another one, and the frozen process continues when it wakes up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Event
from uuid import UUID

import psycopg
import pytest
from redis.asyncio import Redis

from events.exchange import Statement
from hydracore.db.pool import open_pool
from hydracore.signals import run_to_completion
from projections.activity import Activity
from projections.fact import Fact, Read
from projections.follower import Follower
from tests.rebuilding import dry_run_here, write_instances
from tests.store_commands import open_store
from tests.waiting import PATIENCE_S, until
from workers.broker import HintSender
from workers.head_watcher import HeadWatcher
from workers.relay import FOLLOWER, Relay

#: As short as a busy machine allows.
LEASE_S_MAX = 1.0

BEHIND = "SELECT c.lane FROM checkpoint c JOIN lane_head h USING (lane) WHERE c.follower = %s AND c.seq < h.head"


@pytest.fixture(autouse=True, params=["any server", "before 17"])
def short_leases(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server that limits transactions itself, and as with one that cannot."""
    monkeypatch.setattr("events.lease.LEASE_S_MAX", LEASE_S_MAX)
    if request.param == "before 17":
        monkeypatch.setattr("events.lease._TRANSACTION_TIMEOUT_SINCE", 99_00_00)


class Freeze:
    """Blocks once until it is thawed, and the whole event loop with it. The kernel still answers on its connections."""

    def __init__(self) -> None:
        self.frozen, self.thawed = Event(), Event()

    def here(self) -> None:
        if not self.frozen.is_set():
            self.frozen.set()
            assert self.thawed.wait(PATIENCE_S), "no other process took the lanes"


class FreezingActivity(Activity):
    def __init__(self, freeze: Freeze) -> None:
        self._freeze = freeze

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        changes = await super().changes(read, facts)
        self._freeze.here()
        return changes


class FreezingHintSender(HintSender):
    def __init__(self, redis_url: str, freeze: Freeze) -> None:
        super().__init__(redis_url)
        self._freeze = freeze

    def send(self, actor: str, instance_ids: list[UUID]) -> bool:
        self._freeze.here()
        return super().send(actor, instance_ids)


async def test_a_frozen_follower_loses_its_lanes_and_processes_no_event_twice(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    freeze = Freeze()

    async def follow_frozen() -> int:
        async with open_pool(database_url, role="hydracore_app", application="frozen", size=1) as pool:
            return await Follower(pool, FreezingActivity(freeze)).catch_up()

    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        follower = Follower(pool, Activity())
        await follower.create_checkpoints()
        freezing = asyncio.create_task(asyncio.to_thread(run_to_completion, follow_frozen()))
        await asyncio.to_thread(freeze.frozen.wait, PATIENCE_S)
        assert await follower.catch_up() == 0

        await until(follower.catch_up)

    assert (await owner_conn.execute(BEHIND, ("activity",))).rowcount == 0
    freeze.thawed.set()
    assert await freezing == 0
    assert (await dry_run_here(database_url, Activity())).drifted == 0


async def test_a_frozen_relay_loses_its_lanes_and_continues_when_it_wakes_up(
    database_url: str, redis_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    freeze = Freeze()

    async def caught_up() -> bool:
        return (await owner_conn.execute(BEHIND, (FOLLOWER,))).rowcount == 0

    async with open_store(database_url) as (store, pool), Redis.from_url(redis_url) as redis:
        frozen_hints, hints = FreezingHintSender(redis_url, freeze), HintSender(redis_url)
        frozen = asyncio.create_task(Relay(pool, frozen_hints, HeadWatcher(pool, redis)).run())
        await write_instances(store, count=4)
        await asyncio.to_thread(freeze.frozen.wait, PATIENCE_S)
        assert not await caught_up()

        other = asyncio.create_task(Relay(pool, hints, HeadWatcher(pool, redis)).run())
        await until(caught_up)
        other.cancel()
        freeze.thawed.set()
        await write_instances(store, count=4, start=4)
        await until(caught_up)

        assert not frozen.done()
        frozen.cancel()
        await asyncio.wait([frozen, other])
        frozen_hints.close()
        hints.close()
