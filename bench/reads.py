"""GET one instance and a list of 100: our API against the usual stack, on the same server, rows, pool size and token."""

from __future__ import annotations

import asyncio
import sys
from base64 import urlsafe_b64decode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID

import httpx
import msgspec
import psycopg
from msgspec.structs import replace

from bench.load import Load
from bench.result import Comparison
from bench.services import Services
from events.commands import RequestInstance
from events.ids import command_id_for, instance_id_for
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.record import Origin
from events.store import EventStore
from hydracore.api.main import POOL_SIZE
from hydracore.auth import issue_token
from hydracore.db.pool import open_pool
from hydracore.embedded.part import Part
from hydracore.embedded.ports import free_port
from projections.inline import inline_projections

TENANT: Final = "bench"
JWT_SECRET: Final = "a-secret-that-signs-the-tokens-of-the-bench"
MASTER_KEY: Final = "bWFzdGVyLWtleS1vZi10aGUtYmVuY2gtMzItYnl0ZXM"
FAR_FUTURE_S: Final = 4_000_000_000

#: The table has this many customers, each with as many instances as a list shows.
CUSTOMERS: Final = 20
LISTED: Final = 100

ROUNDS: Final = 5
ROUND_S: Final = 2.0
CONNECTIONS: Final = 32
REPOSITORY: Final = Path(__file__).parents[1]


async def compare(services: Services) -> list[Comparison]:
    """Both endpoints, the two servers in turn, several rounds."""
    url = await services.fresh_database("reads", migrated=True)
    ids = await _fill(url)
    # As autovacuum would do within a minute, in the middle of a round: without statistics, plans are guesses.
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("VACUUM (ANALYZE)")
    token = issue_token(
        JWT_SECRET, tenant_id=TENANT, user_id="customer-0", role="customer", expires_at=float(FAR_FUTURE_S)
    )
    one = [f"/v1/instances/{instance_id}" for instance_id in ids[:LISTED]]
    ours, theirs = free_port(), free_port()
    async with _running(services, ours_port=ours, baseline_port=theirs, database_url=url):
        await _agree(ours, theirs, token, one[0])
        return [
            await _compared("GET one instance, requests/s", one, ours, theirs, token, target=5.0),
            await _compared("GET a list of 100, requests/s", ["/v1/instances"], ours, theirs, token, target=8.0),
        ]


async def _compared(name: str, paths: list[str], ours: int, theirs: int, token: str, *, target: float) -> Comparison:
    samples: dict[int, list[float]] = {ours: [], theirs: []}
    for number in range(ROUNDS + 1):
        for port in (ours, theirs):
            load = Load("127.0.0.1", port, paths, token, CONNECTIONS, ROUND_S)
            result = await _load(load)
            if number:  # the first round warms both up
                samples[port].append(result["per_s"])
    return Comparison(
        name=name,
        ours=median(samples[ours]),
        theirs=median(samples[theirs]),
        ratios=[a / b for a, b in zip(samples[ours], samples[theirs], strict=True)],
        target=target,
        against="FastAPI + SQLAlchemy async + asyncpg",
    )


async def _load(load: Load) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(msgspec.json.encode(load._asdict()))
    assert process.returncode == 0, "the load generator failed"
    return msgspec.json.decode(output, type=dict[str, float])


async def _agree(ours: int, theirs: int, token: str, path: str) -> None:
    """Check that both servers give the same answers: otherwise the comparison is worth nothing."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
        for asked in (path, "/v1/instances"):
            answers = [(await client.get(f"http://127.0.0.1:{port}{asked}")).json() for port in (ours, theirs)]
            mine, other = (_shape(answer) for answer in answers)
            assert mine == other, f"{asked}: the answers differ"


def _shape(answer: dict[str, object]) -> object:
    if "instances" in answer:
        items: list[dict[str, object]] = answer["instances"]  # pyright: ignore[reportAssignmentType]
        return [(item["id"], sorted(item)) for item in items]
    return (answer["id"], sorted(answer))


async def _fill(url: str) -> list[UUID]:
    """Create instances of several customers. Returns their ids, those of the first customer first."""
    async with open_pool(url, role="hydracore_app", application="bench-fill", size=4) as pool:
        store = EventStore(pool, inline=inline_projections())
        keyring = Keyring(pool, master_keys=MasterKeys(urlsafe_b64decode(MASTER_KEY + "=")))
        wanted = [(f"customer-{customer}", str(number)) for customer in range(CUSTOMERS) for number in range(LISTED)]
        ids = await asyncio.gather(*(_request(store, keyring, customer, key) for customer, key in wanted))
        await store.close()
        return list(ids)


async def _request(store: EventStore, keyring: Keyring, customer_id: str, key: str) -> UUID:
    instance_id = instance_id_for(tenant_id=TENANT, customer_id=customer_id, idempotency_key=key)
    command = RequestInstance(
        at_ms=1_790_000_000_000 + int(key),
        tenant_id=TENANT,
        customer_id=customer_id,
        idempotency_key=key,
        region_id="local",
        tier_id="starter",
        tier_name="Starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={"chat": True, "telegram": True},
        agent_name=f"Agent {key}",
    )
    email = await keyring.seal(
        f"{customer_id}@example.com", tenant_id=TENANT, customer_id=customer_id, field="customer_email"
    )
    command = replace(command, customer_email=email)
    origin = Origin(actor="bench", command_id=command_id_for(instance_id, "request"), correlation_id=instance_id)
    await store.create(instance_id, command, origin)
    return instance_id


@asynccontextmanager
async def _running(
    services: Services, *, ours_port: int, baseline_port: int, database_url: str
) -> AsyncGenerator[None]:
    async def answers(port: int) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/v1/instances")).status_code in {401, 403}
        except httpx.HTTPError:
            return False

    api = Part(
        name="bench-api",
        kind="api",
        command=(sys.executable, "-m", "hydracore", "api"),
        cwd=str(REPOSITORY),
        environ={
            "HYDRACORE_DATABASE_URL": database_url,
            "HYDRACORE_REDIS_URL": services.valkey.url(),
            "HYDRACORE_MASTER_KEY": MASTER_KEY,
            "HYDRACORE_JWT_SECRET": JWT_SECRET,
            "HYDRACORE_API_PORT": str(ours_port),
            "HYDRACORE_LOG_LEVEL": "warning",
            # Requests are counted as always, but the limit is never reached, although all are one user's.
            "HYDRACORE_RATE_LIMIT_PER_MINUTE": "10000000",
        },
        ready=lambda: answers(ours_port),
    )
    baseline = Part(
        name="bench-baseline",
        kind="baseline",
        command=(
            sys.executable, "-m", "uvicorn", "bench.baseline_api:app", "--port", str(baseline_port), "--loop", "uvloop",
            "--http", "httptools", "--no-access-log", "--log-level", "warning",
        ),
        cwd=str(REPOSITORY),
        environ={
            "BENCH_DATABASE_URL": database_url.replace("postgresql://", "postgresql+asyncpg://", 1),
            "BENCH_JWT_SECRET": JWT_SECRET,
            "BENCH_POOL_SIZE": str(POOL_SIZE),
        },
        ready=lambda: answers(baseline_port),
    )  # fmt: skip
    await services.supervisor.start(api)
    await services.supervisor.start(baseline)
    try:
        yield
    finally:
        await services.supervisor.stop(["bench-api", "bench-baseline"])
