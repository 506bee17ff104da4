"""`usage_daily` and `usage_end_user`: what each instance used on each day, and how many people it served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from events.record import Recorded
from events.sql import Statements
from events.types import UsageEntry, UsageRecorded

_SQL = Statements("projections", "usage_daily.sql")
_ADD_USAGE = _SQL["add_usage"]
_ADD_END_USERS = _SQL["add_end_users"]

_json = msgspec.json.Encoder(decimal_format="string")


class Sums(msgspec.Struct, kw_only=True):
    """One instance's day."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal = Decimal(0)

    def add(self, entry: UsageEntry) -> None:
        self.requests += 1
        self.prompt_tokens += entry.prompt_tokens
        self.completion_tokens += entry.completion_tokens
        self.cost_usd += Decimal(entry.cost_usd)


class UsageDaily:
    """Adds each batch of usage to its days."""

    name = "usage_daily"
    version = 1
    types = ("usage_recorded",)

    async def apply(self, connection: AsyncConnection, events: Sequence[Recorded]) -> None:
        days, end_users = fold(events)
        if days:
            rows = [_key(key) | msgspec.structs.asdict(sums) for key, sums in days.items()]
            await connection.execute(_ADD_USAGE, (_json.encode(rows).decode(),))
        if end_users:
            rows = [_key(key[:3]) | {"end_user": key[3]} for key in sorted(end_users)]
            await connection.execute(_ADD_END_USERS, (_json.encode(rows).decode(),))


def fold(
    events: Sequence[Recorded],
) -> tuple[dict[tuple[int, UUID, date], Sums], set[tuple[int, UUID, date, str]]]:
    """The sums and the end users that `events` add. Pure."""
    days: dict[tuple[int, UUID, date], Sums] = {}
    end_users: set[tuple[int, UUID, date, str]] = set()
    for recorded in events:
        event = recorded.event
        if not isinstance(event, UsageRecorded):
            continue
        for entry in event.entries:
            day = datetime.fromtimestamp(entry.at_ms / 1000, UTC).date()
            key = (recorded.lane, recorded.stream_id, day)
            days.setdefault(key, Sums()).add(entry)
            if entry.end_user is not None:
                end_users.add((*key, entry.end_user))
    return days, end_users


def _key(key: tuple[int, UUID, date]) -> dict[str, Any]:
    lane, instance_id, day = key
    return {"lane": lane, "instance_id": instance_id, "day": day}
