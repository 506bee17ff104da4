"""Locks lanes in a transaction, and creates instances in given lanes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

from events.ids import lane_of
from events.record import Outcome
from events.store import EventStore
from tests.lifecycle import instance_id, request
from tests.store_commands import creation_origin

#: A lane that no test locks.
UNLOCKED_LANE = 50

TEST_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'test'"

WAITING_SESSIONS = f"{TEST_SESSIONS} AND wait_event_type = 'Lock'"


class LaneCustomers:
    """Customers whose instances are in a given lane: each creates one instance."""

    def __init__(self, count: int = 4_000) -> None:
        self._in_lane: defaultdict[int, list[str]] = defaultdict(list)
        for number in range(count):
            self._in_lane[lane_of(instance_id(f"c{number}"))].append(f"c{number}")

    async def create(self, store: EventStore, lane: int) -> Outcome:
        one = self._in_lane[lane].pop()
        stream_id = instance_id(one)
        return await store.create(stream_id, request(customer_id=one), creation_origin(stream_id))

    def start_create(self, store: EventStore, lane: int) -> asyncio.Task[Outcome]:
        return asyncio.create_task(self.create(store, lane))


@asynccontextmanager
async def lock_lanes(database_url: str, lanes: Iterable[int]) -> AsyncGenerator[AsyncConnection]:
    """Another transaction locks the lanes, and stays open."""
    async with await AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT FROM lane WHERE lane = ANY (%s) ORDER BY lane FOR UPDATE", (list(lanes),))
        yield holder


def is_treated_as_locked(store: EventStore, lane: int) -> bool:
    return lane in store._committer._locked


async def count_rows(connection: AsyncConnection, statement: str) -> int:
    return (await connection.execute(statement.encode())).rowcount


async def has_rows(connection: AsyncConnection, statement: str) -> bool:
    return await count_rows(connection, statement) > 0


async def has_no_rows(connection: AsyncConnection, statement: str) -> bool:
    return await count_rows(connection, statement) == 0
