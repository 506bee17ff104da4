"""Reads over the fleet's counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.retries import with_retries
from events.sql import Statements

_COUNTS = Statements("projections", "fleet.sql")["counts"]

#: The most points in time per query: those of a year of days.
TIMES_MAX = 400


class FleetCount(msgspec.Struct, frozen=True):
    """How many instances had a status, provider (empty: none yet), region and tier `at` a time."""

    at: datetime
    status: str
    provider: str
    region_id: str
    tier_id: str
    instances: int


async def fleet_counts(pool: AsyncConnectionPool, times: Sequence[datetime]) -> list[FleetCount]:
    """The counts at each of `times`, which are at most `TIMES_MAX`, in order.

    The table counts by the hour: a time within an hour gets the counts at the end of that hour.
    """
    assert len(times) <= TIMES_MAX, "callers check the limit"
    assert list(times) == sorted(times), "what moved before the first is counted with all of them"

    async def read(connection: AsyncConnection) -> list[FleetCount]:
        cursor = await connection.execute(_COUNTS, {"times": list(times)}, prepare=True)
        return [FleetCount(at.astimezone(UTC), *rest) for at, *rest in await cursor.fetchall()]

    return await with_retries(pool, read)
