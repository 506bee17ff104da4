"""Reads over the tenants' activity."""

from __future__ import annotations

from datetime import UTC, date, datetime

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.retries import with_retries
from events.sql import Statements

_OF_TENANT = Statements("projections", "activity.sql")["of_tenant"]

#: The most lines per answer: the latest ones.
LINES_MAX = 1_000


class ActivityLine(msgspec.Struct, frozen=True):
    """How often `actor` gave a command on `day` (UTC), how many events that caused, and when first and last."""

    day: date
    actor: str
    command: str
    commands: int
    events: int
    first_at: datetime
    last_at: datetime


async def tenant_activity(
    pool: AsyncConnectionPool, tenant_id: str, *, first: date, last: date, actor: str | None = None
) -> list[ActivityLine]:
    """Who did what in the tenant from the day `first` to the day `last`, latest first.

    `actor`: only this actor (admin:ops), or all actors of this kind (admin).
    """
    parameters = {"tenant_id": tenant_id, "first": first, "last": last, "actor": actor, "limit": LINES_MAX}

    async def read(connection: AsyncConnection) -> list[ActivityLine]:
        cursor = await connection.execute(_OF_TENANT, parameters, prepare=True)
        return [_in_utc(ActivityLine(*row)) for row in await cursor.fetchall()]

    return await with_retries(pool, read)


def _in_utc(line: ActivityLine) -> ActivityLine:
    first_at, last_at = line.first_at.astimezone(UTC), line.last_at.astimezone(UTC)
    return msgspec.structs.replace(line, first_at=first_at, last_at=last_at)
