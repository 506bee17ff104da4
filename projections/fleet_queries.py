"""Reads over the fleet's counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.patience import patiently
from events.sql import Statements

_COUNTS = Statements("projections", "fleet.sql")["counts"]

#: For how many times one answer has the counts: those of a year's days.
TIMES_MAX = 400


class FleetCount(msgspec.Struct, frozen=True):
    """How many instances there were `at` a time, in one status at one provider (empty: none yet), region and tier."""

    at: datetime
    status: str
    provider: str
    region_id: str
    tier_id: str
    instances: int


async def fleet_counts(pool: AsyncConnectionPool, times: Sequence[datetime]) -> list[FleetCount]:
    """The counts at each of `times`, of which there are up to `TIMES_MAX`, in order: at the end of its hour where one is no full
    hour, because the table counts by the hour.
    """
    assert len(times) <= TIMES_MAX, "whoever asks knows the limit"
    assert list(times) == sorted(times), "what moved before the first is counted with all of them"

    async def read(connection: AsyncConnection) -> list[FleetCount]:
        cursor = await connection.execute(_COUNTS, {"times": list(times)}, prepare=True)
        return [FleetCount(at.astimezone(UTC), *rest) for at, *rest in await cursor.fetchall()]

    return await patiently(pool, read)
