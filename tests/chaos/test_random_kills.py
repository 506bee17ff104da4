"""Everything dies at random moments while instances are made and deleted, on agents that are real processes."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.consistency import check_consistency
from tests.program import Program
from tests.secrecy import assert_no_secret_leaked
from tests.services import OwnServices
from tests.stack import FAST_HEARTBEATS, Stack

SEED = 2026
INSTANCES = 5

#: Between two incidents: from "before anybody has noticed" to "all had just settled".
PAUSE_S_MAX = 0.8

Incident = Callable[[], Awaitable[None]]


@pytest.fixture
async def fragile(own_services: OwnServices, tmp_path: Path) -> AsyncGenerator[Stack]:
    """A stack on services that may be killed, too."""
    stack = Stack(tmp_path, database_url=own_services.database_url, redis_url=own_services.redis_url, **FAST_HEARTBEATS)
    try:
        await stack.start(boot="process")
        yield stack
    finally:
        stack.close()


@pytest.mark.long
async def test_random_kills_of_every_component_lose_no_instance_and_double_or_leak_no_server(
    fragile: Stack, own_services: OwnServices
) -> None:
    rng = random.Random(SEED)  # noqa: S311 - the same moments in every run, as far as the machine allows
    parts = [killer(part) for part in (fragile.worker, fragile.relay, fragile.api)]
    services = [lambda: own_services.kill("postgres"), lambda: own_services.kill("valkey"), flusher(fragile)]

    asked = [fragile.new_key() for _ in range(INSTANCES)]
    creating = asyncio.gather(*(fragile.create(key) for key, _ in asked))
    await storm(rng, [*parts * 2, *services])
    ids = list(await creating)
    assert ids == [instance_id for _, instance_id in asked]
    for instance_id in ids:
        await fragile.until_status(instance_id, "running")
        fragile.server(instance_id)
    assert len(fragile.cloudsim.agents()) == len(ids)

    deleting = asyncio.gather(*(fragile.delete(instance_id) for instance_id in ids))
    await storm(rng, [*parts * 2, *services])
    await deleting
    for instance_id in ids:
        await fragile.until_status(instance_id, "deleted")
        fragile.assert_no_server(instance_id)

    assert not fragile.cloudsim.servers()
    assert not fragile.cloudsim.agents()
    assert set(fragile.rows("SELECT kind FROM reservation WHERE released_at IS NULL")) == {("idempotency_key",)}
    for table in ("attention", "heartbeat", "orphan"):
        assert not fragile.rows(f"SELECT 1 FROM {table}")  # noqa: S608 - our own tables
    for part in (fragile.worker, fragile.relay, fragile.api):
        assert part.is_alive, part.output()[-3000:]
    assert await check_consistency(fragile.database_url)
    assert_no_secret_leaked(fragile)


async def storm(rng: random.Random, incidents: list[Incident]) -> None:
    """Let all of it happen, in a random order, at random moments."""
    under_way: list[asyncio.Task[None]] = []
    for incident in rng.sample(incidents, len(incidents)):
        await asyncio.sleep(rng.uniform(0, PAUSE_S_MAX))
        under_way.append(asyncio.ensure_future(incident()))
    await asyncio.gather(*under_way)


def killer(part: Program) -> Incident:
    async def kill_and_start() -> None:
        assert part.is_alive, part.output()[-3000:]
        part.kill()
        part.start()

    return kill_and_start


def flusher(stack: Stack) -> Incident:
    async def flush() -> None:
        # One that was killed in this very moment has lost everything already.
        with redis.Redis.from_url(stack.redis_url) as client, suppress(redis.ConnectionError):
            client.flushall()

    return flush
