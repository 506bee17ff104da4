"""A projection that refuses one event, so that its lane is parked right before that event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool

from events.exchange import Statement
from events.store import EventStore
from projections.fact import Fact, Read
from projections.follower import Follower
from projections.operations import Intervention
from projections.usage_daily import UsageDaily
from tests import lifecycle
from tests.store_commands import create_instance, open_store, origin


class RejectingProjection(UsageDaily):
    """Refuses the second batch of one instance's usage."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if any(fact.stream_id == self._refused and getattr(fact.event, "seq", 0) == 2 for fact in facts):
            raise ValueError("no")
        return await super().changes(read, facts)


async def usage_seq(connection: psycopg.AsyncConnection, instance_id: UUID, batch: int) -> int:
    """The number in its lane of an instance's batch of usage."""
    statement = "SELECT seq FROM event WHERE stream_id = %s AND type = 'usage_recorded' AND payload->>'seq' = %s"
    row = await (await connection.execute(statement, (instance_id, str(batch)))).fetchone()
    assert row is not None
    return row[0]


async def interventions(connection: psycopg.AsyncConnection, name: str) -> list[Intervention]:
    """What was done to the projection by hand, oldest first."""
    statement = """
        SELECT name, version, lane, seq, action, error, actor, reason, made_at
          FROM projection_intervention WHERE name = %s ORDER BY id
    """
    return [Intervention(*row) for row in await (await connection.execute(statement, (name,))).fetchall()]


@asynccontextmanager
async def log_with_parked_lane(database_url: str) -> AsyncGenerator[tuple[EventStore, AsyncConnectionPool, UUID]]:
    """Ten instances with four batches of usage each; one lane is parked at its second batch."""
    async with open_store(database_url) as (store, pool):
        ids = [await create_instance(store, customer_id=f"customer-{number}") for number in range(10)]
        for seq in range(1, 5):
            for instance_id in ids:
                await store.execute(instance_id, lifecycle.usage(seq), origin("agent:x"))
        follower = Follower(pool, RejectingProjection(ids[0]))
        await follower.create_checkpoints()
        await follower.catch_up()
        yield store, pool, ids[0]
