"""Reads over the fleet's counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.patience import patiently
from events.sql import Statements

_COUNTS = Statements("projections", "fleet.sql")["counts"]


class FleetCount(msgspec.Struct, frozen=True):
    """How many instances there were `at` a time, in one status at one provider (empty: none yet), region and tier."""

    at: datetime
    status: str
    provider: str
    region_id: str
    tier_id: str
    instances: int


async def fleet_counts(pool: AsyncConnectionPool, times: Sequence[datetime]) -> list[FleetCount]:
    """The counts at the end of the hour before each of `times`, or within it where `times` are not full hours."""

    async def read(connection: AsyncConnection) -> list[FleetCount]:
        cursor = await connection.execute(_COUNTS, {"times": list(times)}, prepare=True)
        return [FleetCount(*row) for row in await cursor.fetchall()]

    return await patiently(pool, read)
