"""Usage in the log, and how far a follower has come with it."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events import commands as c
from events.store import EventStore
from events.types import UsageEntry
from projections import operations
from tests.store_commands import NOW_MS, origin

DAY_MS = 86_400_000
LAST_DAY = date(2026, 9, 21)  # the day of NOW_MS


def usage_entry(*, days_ago: int = 0, cost_usd: str = "0.001", end_user: str | None = None) -> UsageEntry:
    return UsageEntry(
        at_ms=NOW_MS - days_ago * DAY_MS,
        model="scripted-1",
        prompt_tokens=100,
        completion_tokens=20,
        cost_usd=cost_usd,
        channel="api",
        end_user=end_user,
    )


async def record_usage(store: EventStore, instance_id: UUID, ledger_id: UUID, seq: int, *entries: UsageEntry) -> None:
    command = c.RecordUsage(at_ms=NOW_MS, ledger_id=ledger_id, seq=seq, entries=entries)
    await store.execute(instance_id, command, origin("agent:x"))


async def lane_backlogs(pool: AsyncConnectionPool, name: str) -> dict[int, tuple[int, str | None]]:
    """How many events a follower is behind in each lane, and why it is parked there."""
    async with pool.connection() as connection:
        found = {one.name: one for one in await operations.status(connection, sample_s=0)}[name]
    return {lane.lane: (lane.behind, lane.error) for lane in found.lanes}
