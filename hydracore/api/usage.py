"""`/v1/instances/{id}/usage`: what an instance used, day by day, as far as the read table has followed the log."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from psycopg_pool import AsyncConnectionPool

from events.times import day_of
from hydracore.api import use_schemas as s
from hydracore.api.access import require_access
from hydracore.api.operations import operation
from hydracore.auth import Principal
from hydracore.clock import NowMs
from hydracore.money import decimal_text
from projections.queries import Queries
from projections.usage_queries import Day, usage_report


@dataclass(frozen=True, kw_only=True)
class UsageReports:
    queries: Queries
    pool: AsyncConnectionPool
    now_ms: NowMs

    @operation("GET", "/v1/instances/{instance_id}/usage", "Get instance usage", answer=s.Usage, errors=(403, 404))
    async def get_usage(self, who: Principal, instance_id: UUID, days: s.Days = s.DAYS_DEFAULT) -> s.Usage:
        """The last `days` days (UTC), today included."""
        instance = require_access(who, await self.queries.instance(instance_id))
        report = await usage_report(self.pool, instance_id, last=day_of(self.now_ms()), days=days)
        return s.Usage(
            daily=[_shown(day) for day in report.days],
            hostname=instance.hostname,
            instance_id=instance_id,
            total_cost_usd=decimal_text(sum((day.cost_usd for day in report.days), Decimal(0))),
            total_requests=sum(day.requests for day in report.days),
            total_tokens=sum(day.prompt_tokens + day.completion_tokens for day in report.days),
            unique_end_users=report.unique_end_users,
        )


def _shown(day: Day) -> s.UsageDay:
    return s.UsageDay(
        date=day.day,
        requests=day.requests,
        prompt_tokens=day.prompt_tokens,
        completion_tokens=day.completion_tokens,
        total_tokens=day.prompt_tokens + day.completion_tokens,
        cost_usd=decimal_text(day.cost_usd),
    )
