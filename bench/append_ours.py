"""Our append: a first request into a fresh stream, with the `instance` table written in the same transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from events.commands import RequestInstance
from events.ids import command_id_for, instance_id_for
from events.record import InlineProjection, Origin
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.instance import InstanceProjection

TENANT = "bench"
POOL_SIZE = 4


@asynccontextmanager
async def opened(
    database_url: str,
    *,
    inline: Sequence[InlineProjection] = (InstanceProjection(),),
    on_commit: Callable[[dict[int, int]], None] | None = None,
) -> AsyncGenerator[EventStore]:
    """A store that acts as the app's role, as the product does. By default `instance` is its only inline table."""
    async with open_pool(database_url, role="hydracore_app", application="bench", size=POOL_SIZE) as pool:
        store = EventStore(pool, inline=inline, on_commit=on_commit)
        try:
            yield store
        finally:
            await store.close()


async def appends_per_s(store: EventStore, *, tasks: int, seconds: float) -> float:
    """The number of appends per second that `tasks` concurrent tasks of this process make."""
    began_s = time.perf_counter()
    counts = await asyncio.gather(*(_append_until(store, began_s + seconds) for _ in range(tasks)))
    return sum(counts) / (time.perf_counter() - began_s)


async def _append_until(store: EventStore, end_s: float) -> int:
    count = 0
    while time.perf_counter() < end_s:
        await append(store, customer_id=f"customer-{count % 100}")
        count += 1
    return count


async def append(store: EventStore, *, customer_id: str) -> UUID:
    """Append one request for an instance, as the API's create handler does. Returns the instance's id."""
    key = uuid4().hex
    instance_id = instance_id_for(tenant_id=TENANT, customer_id=customer_id, idempotency_key=key)
    command = RequestInstance(
        at_ms=time.time_ns() // 1_000_000,
        tenant_id=TENANT,
        customer_id=customer_id,
        idempotency_key=key,
        region_id="local",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={"chat": True, "conversations": True, "skills": True, "updates": True},
        tier_name="Starter",
        agent_name="Ada",
    )
    origin = Origin(
        actor=f"customer:{customer_id}",
        command_id=command_id_for(instance_id, "request"),
        correlation_id=uuid4(),
        request_hash=bytes(32),
        result=b'{"idempotency_key":"' + key.encode() + b'"}',
    )
    outcome = await store.create(instance_id, command, origin)
    assert not outcome.duplicate
    return instance_id
