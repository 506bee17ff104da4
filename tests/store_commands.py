"""Puts instances into the log directly, by commands on a store, without the API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events.ids import command_id_for, instance_id_for
from events.record import Origin
from events.store import EventStore
from hydracore.db.pool import open_pool
from projections.inline import inline_projections

NOW_MS = 1_790_000_000_000


def origin(actor: str = "customer:ada") -> Origin:
    return Origin(actor=actor, command_id=uuid4(), correlation_id=uuid4())


def creation_origin(stream_id: UUID) -> Origin:
    """The same for each creation of a stream, so that a repeated one is recognised."""
    return Origin(actor="api", command_id=command_id_for(stream_id, "request"), correlation_id=stream_id)


def request(customer_id: str = "ada", key: str = "first") -> c.RequestInstance:
    return c.RequestInstance(
        at_ms=NOW_MS,
        tenant_id="acme",
        customer_id=customer_id,
        idempotency_key=key,
        region_id="local",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={"chat": True},
    )


async def create_instance(store: EventStore, customer_id: str = "ada", key: str = "first") -> UUID:
    """A new instance of the customer."""
    instance_id = instance_id_for(tenant_id="acme", customer_id=customer_id, idempotency_key=key)
    await store.create(instance_id, request(customer_id, key), creation_origin(instance_id))
    return instance_id


@asynccontextmanager
async def open_store(database_url: str) -> AsyncGenerator[tuple[EventStore, AsyncConnectionPool]]:
    """A store with the inline projections, on a pool of its own, as the app's role."""
    async with open_pool(database_url, role="hydracore_app", application="test", size=4) as pool:
        store = EventStore(pool, inline=inline_projections())
        yield store, pool
        await store.close()
