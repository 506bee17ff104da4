"""Everything is killed, at random moments, while instances are made and unmade: all of them run, and then nothing is left."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis.asyncio

from hydracore.embedded.ports import free_port
from tests.audit import audit
from tests.integration.test_up import Up, home, up
from tests.waiting import until

#: Fixtures are found by being here.
__all__ = ["home", "up"]

INSTANCES = 4
SETTLED_S_MAX = 120.0


class Attacker:
    """Kills one part after the other, each by the pid that it has then. The order is the seed's."""

    def __init__(self, up: Up, seed: int) -> None:
        self._up = up
        self._random = random.Random(seed)  # noqa: S311 - moments to kill at, not secrets

    async def strike(self) -> None:
        """Every part once, in random order, with pauses."""
        blows: list[Callable[[], Awaitable[None]]] = [
            *(self._part(kind) for kind in ("api", "relay", "worker", "worker", "cloudsim")),
            self._flush,
            self._valkey,
            self._postgres,
        ]
        self._random.shuffle(blows)
        for blow in blows:
            await blow()
            await asyncio.sleep(self._random.uniform(0.0, 0.5))

    def _part(self, kind: str) -> Callable[[], Awaitable[None]]:
        async def blow() -> None:
            for pid in self._dev()["pids"][kind]:
                _kill(pid)

        return blow

    async def _flush(self) -> None:
        async with redis.asyncio.Redis.from_url(self._dev()["redis_url"]) as client:
            await _reached(client.flushall)

    async def _valkey(self) -> None:
        async with redis.asyncio.Redis.from_url(self._dev()["redis_url"]) as client:
            info: dict[str, Any] = await _reached(lambda: client.info("server"))
            _kill(int(info["process_id"]))

    async def _postgres(self) -> None:
        async def postmaster() -> int:
            async with await psycopg.AsyncConnection.connect(self._dev()["database_url"]) as connection:
                row = await (await connection.execute("SELECT pg_read_file('postmaster.pid')")).fetchone()
                assert row is not None
                return int(row[0].splitlines()[0])

        _kill(await _reached(postmaster))

    def _dev(self) -> dict[str, Any]:
        return self._up.dev()


async def _reached(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a store that may be starting again just now."""
    answers: list[Any] = []

    async def answered() -> bool:
        try:
            answers.append(await call())
        except (redis.exceptions.RedisError, psycopg.OperationalError, OSError):
            return False
        return True

    await until(answered, seconds_max=SETTLED_S_MAX)
    return answers[0]


def _kill(pid: int) -> None:
    # One that has just ended is being started again.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Customer:
    """Asks again where nobody answers, as any client of an HTTP API must."""

    def __init__(self, dev: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {dev['customer']['token']}"}
        self._client = httpx.AsyncClient(base_url=dev["url"], headers=headers, trust_env=False, timeout=20)

    async def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answers: list[httpx.Response] = []

        async def answered() -> bool:
            try:
                answer = await self._client.request(method, path, **({"json": body} if body else {}))
            except httpx.TransportError:
                return False
            answers.append(answer)
            return answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR

        await until(answered, seconds_max=SETTLED_S_MAX)
        assert answers[-1].is_success, answers[-1].text
        return answers[-1].json()

    async def all_are(self, status: str, ids: list[str]) -> bool:
        return all([(await self.call("GET", f"/v1/instances/{each}"))["status"] == status for each in ids])

    async def close(self) -> None:
        await self._client.aclose()


async def _simulated(dev: dict[str, Any], what: str) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {dev['cloudsim_token']}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            return (await client.get(f"{dev['cloudsim_url']}/_sim/{what}")).json()["servers"]

    servers: list[dict[str, Any]] = await ask()
    return servers


@pytest.mark.timeout(400)
async def test_whatever_is_killed_all_instances_run_and_then_nothing_is_left(up: Callable[..., Up], home: Path) -> None:
    started = up(free_port())
    dev = await started.ready()
    customer, attacker = Customer(dev), Attacker(started, seed=7)

    asked = [
        await customer.call("POST", "/v1/instances", region_id="local", tier_id="starter", idempotency_key=f"k{number}")
        for number in range(INSTANCES)
    ]
    ids = [each["instance_id"] for each in asked]
    await attacker.strike()
    await until(lambda: customer.all_are("running", ids), seconds_max=SETTLED_S_MAX)

    servers = await _simulated(dev, "servers")
    assert sorted(server["labels"]["hc-instance"] for server in servers) == sorted(ids)

    for each in ids:
        await customer.call("DELETE", f"/v1/instances/{each}")
    await attacker.strike()
    await until(lambda: customer.all_are("deleted", ids), seconds_max=SETTLED_S_MAX)

    assert await _simulated(dev, "servers") == []
    history = await _simulated(dev, "history")
    for each in ids:
        lives = sorted(
            (one["created_at"], one["deleted_at"]) for one in history if one["labels"].get("hc-instance") == each
        )
        assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(lives)), "two at a time"
    assert await audit(dev["database_url"]) > 0
    await customer.close()
