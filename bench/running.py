"""The time from POST to `running`, with real processes and a cloudsim that boots at once: HydraCore's own share."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final, NamedTuple

import httpx
import msgspec
import psycopg

from bench.load import post
from bench.reads import FAR_FUTURE_S, JWT_SECRET, MASTER_KEY, REPOSITORY, TENANT
from bench.result import Limit
from bench.services import Services
from hydracore.auth import issue_token
from hydracore.embedded.part import Part
from hydracore.embedded.ports import free_port

ALONE: Final = 10
TOGETHER: Final = 100
WAIT_S_MAX: Final = 60.0

#: The directory of the simulated servers' disks, in memory: real servers do not share a disk with the database.
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a tmpfs by definition

_READY: Final = "SELECT stream_id, extract(epoch FROM recorded_at)::float8 FROM event WHERE type = 'instance_ready'"


async def measure(services: Services) -> list[Limit]:
    """Create one at a time, then a hundred at once. The time of each is from its POST to its `instance_ready` event."""
    url = await services.fresh_database("running", migrated=True)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as disks:
        took_alone, took_together = await _measure_on(services, url, disks)
    return [
        Limit(name=f"create to running, one at a time, p50 of {ALONE}", value=median(took_alone), target=1.0, unit="s"),
        Limit(name=f"create to running, {TOGETHER} at once, p99", value=_p99(took_together), target=3.0, unit="s"),
    ]


async def _measure_on(services: Services, url: str, disks: str) -> tuple[list[float], list[float]]:
    """Seconds from POST to `running`: of instances that were created one at a time, and of those created at once."""
    async with _stack(services, url, disks) as customer:
        alone: list[tuple[str, float]] = []
        for number in range(ALONE):
            alone.append(await customer.create(f"alone-{number}"))
            await _until_running(url, number + 1)
        together = await asyncio.gather(*(customer.create(f"together-{number}") for number in range(TOGETHER)))
        await _until_running(url, ALONE + TOGETHER)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        ready_s = {str(row[0]): row[1] for row in await (await connection.execute(_READY)).fetchall()}
    return _since(alone, ready_s), _since(together, ready_s)


def _since(sent: list[tuple[str, float]], ready_s: dict[str, float]) -> list[float]:
    return [ready_s[made] - sent_s for made, sent_s in sent]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


class Customer(NamedTuple):
    """Requests instances, with as little processor time as possible: the servers need it."""

    port: int
    token: str

    async def create(self, key: str) -> tuple[str, float]:
        """The instance's id, and the time of its request in seconds since 1970, by the database's clock, too."""
        body = {"region_id": "local", "tier_id": "starter", "idempotency_key": key}
        sent_s = time.time()
        answer = await post("127.0.0.1", self.port, "/v1/instances", self.token, msgspec.json.encode(body))
        return msgspec.json.decode(answer)["instance_id"], sent_s


async def _until_running(url: str, count: int) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        end_s = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < end_s:
            row = await (await connection.execute("SELECT count(*) FROM instance WHERE status = 'running'")).fetchone()
            if row is not None and row[0] == count:
                return
            await asyncio.sleep(0.05)
    raise RuntimeError(f"not all of {count} were running within {WAIT_S_MAX:g} s")


@asynccontextmanager
async def _stack(services: Services, database_url: str, disks: str) -> AsyncGenerator[Customer]:
    """API, relay, worker and a cloudsim that runs its agents in its own process, at once."""
    api_port, sim_port, sim_token = free_port(), free_port(), secrets.token_hex(16)
    url = f"http://127.0.0.1:{api_port}"
    environ = {
        "HYDRACORE_DATABASE_URL": database_url,
        "HYDRACORE_REDIS_URL": services.valkey.url(1),
        "HYDRACORE_MASTER_KEY": MASTER_KEY,
        "HYDRACORE_JWT_SECRET": JWT_SECRET,
        "HYDRACORE_PUBLIC_URL": url,
        "HYDRACORE_API_PORT": str(api_port),
        "HYDRACORE_LOG_LEVEL": "warning",
        "HYDRACORE_CLOUDSIM_URL": f"http://127.0.0.1:{sim_port}",
        "HYDRACORE_CLOUDSIM_TOKEN": sim_token,
    }
    sim = ("--home", disks, "--port", str(sim_port), "--boot", "inline")
    names = ["bench-sim", "bench-run-api", "bench-relay", "bench-worker"]
    parts = {
        "bench-sim": ("cloudsim", *sim),
        "bench-run-api": ("api",),
        "bench-relay": ("relay",),
        "bench-worker": ("worker",),
    }
    for name, command in parts.items():
        await services.supervisor.start(part_of(name, command, environ))
    token = issue_token(
        JWT_SECRET, tenant_id=TENANT, user_id="customer-0", role="customer", expires_at=float(FAR_FUTURE_S)
    )
    try:
        await _until_ready(url)
        yield Customer(api_port, token)
    finally:
        await services.supervisor.stop(names)


def part_of(name: str, command: tuple[str, ...], environ: dict[str, str]) -> Part:
    program = (sys.executable, "-m", "hydracore", *command)
    return Part(name=name, kind=name, command=program, cwd=str(REPOSITORY), environ=environ, ready_after_s=1.5)


async def _until_ready(url: str) -> None:
    end_s = time.monotonic() + WAIT_S_MAX
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while time.monotonic() < end_s:
            try:
                if (await client.get("/health/ready")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError("the API did not get ready")
