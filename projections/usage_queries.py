"""Reads over the usage tables."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.ids import lane_of
from events.retries import with_retries
from events.sql import Statements

_SQL = Statements("projections", "usage_daily.sql")
_DAILY = _SQL["daily"]
_UNIQUE_END_USERS = _SQL["unique_end_users"]
_SPENT = _SQL["spent"]


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What was used on one day (UTC)."""

    day: date
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per day, oldest first, days without use included; and how many different end users there were."""

    days: list[Day]
    unique_end_users: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars spent today and this month (UTC), as far as the usage tables know."""

    daily_usd: Decimal
    monthly_usd: Decimal


async def usage_report(pool: AsyncConnectionPool, instance_id: UUID, *, last: date, days: int) -> UsageReport:
    """The usage on the `days` days up to and including `last`."""
    parameters = _of(instance_id) | {"first": last - timedelta(days=days - 1), "last": last}

    async def read(connection: AsyncConnection) -> UsageReport:
        daily = await (await connection.execute(_DAILY, parameters, prepare=True)).fetchall()
        users = await (await connection.execute(_UNIQUE_END_USERS, parameters, prepare=True)).fetchone()
        assert users is not None
        series = [
            Day(day=day, requests=requests, prompt_tokens=prompt, completion_tokens=completion, cost_usd=cost)
            for day, requests, prompt, completion, cost in daily
        ]
        return UsageReport(days=series, unique_end_users=users[0])

    return await with_retries(pool, read)


async def spent(pool: AsyncConnectionPool, instance_id: UUID, *, today: date) -> Spent:
    """What the instance has spent on `today`, and in the month of `today`."""

    async def read(connection: AsyncConnection) -> Spent:
        row = await (await connection.execute(_SPENT, _of(instance_id) | {"today": today}, prepare=True)).fetchone()
        assert row is not None
        return Spent(daily_usd=row[0], monthly_usd=row[1])

    return await with_retries(pool, read)


def _of(instance_id: UUID) -> dict[str, Any]:
    return {"lane": lane_of(instance_id), "instance_id": instance_id}
