"""`usage_daily` and `usage_end_user`: what each instance used on each day, and how many people it served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Final
from uuid import UUID

import msgspec

from events.exchange import Statement
from events.sql import Statements
from events.times import day_of
from events.types import UsageEntry, UsageRecorded
from projections.fact import Fact, Read
from projections.tables import Rows, Table, records

_SQL = Statements("projections", "usage_daily.sql")
_ADD_USAGE = _SQL["add_usage"]
_ADD_END_USERS = _SQL["add_end_users"]

#: A day's sums are capped at what their columns hold, whatever an agent reports. A sum that overflowed would park the
#: lane, and stop the metering of all other instances in it. No honest agent reaches these limits.
TOKENS_MAX: Final = 10**18
COST_USD_MAX: Final = Decimal("999999999999.999999999999")

_DAILY = Table(
    "usage_daily",
    key=("lane", "instance_id", "day"),
    columns=("lane", "instance_id", "day", "requests", "prompt_tokens", "completion_tokens", "cost_usd"),
    stream="instance_id",
)
_END_USER = Table(
    "usage_end_user",
    key=("lane", "instance_id", "day", "end_user"),
    columns=("lane", "instance_id", "day", "end_user"),
    stream="instance_id",
)


class Sums(msgspec.Struct):
    """The sums of one instance on one day, in the order of the table's columns."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal = Decimal(0)

    def add(self, entry: UsageEntry) -> None:
        self.requests += 1
        self.prompt_tokens = min(self.prompt_tokens + entry.prompt_tokens, TOKENS_MAX)
        self.completion_tokens = min(self.completion_tokens + entry.completion_tokens, TOKENS_MAX)
        self.cost_usd = min(self.cost_usd + Decimal(entry.cost_usd), COST_USD_MAX)


class UsageFold:
    """Sums up usage by instance and day, and collects the end users."""

    def __init__(self) -> None:
        self._days: dict[tuple[int, UUID, date], Sums] = {}
        self._end_users: set[tuple[int, UUID, date, str]] = set()

    def feed(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            assert isinstance(fact.event, UsageRecorded), "the only type that is asked for"
            for entry in fact.event.entries:
                key = (fact.lane, fact.stream_id, day_of(entry.at_ms))
                self._days.setdefault(key, Sums()).add(entry)
                if entry.end_user is not None:
                    self._end_users.add((*key, entry.end_user))

    def rows(self) -> Rows:
        return {
            _DAILY.name: [(*key, *msgspec.structs.astuple(sums)) for key, sums in self._days.items()],
            _END_USER.name: sorted(self._end_users),
        }


class UsageDaily:
    """Adds each batch of usage to its days."""

    name = "usage_daily"
    version = 1
    types = ("usage_recorded",)
    payloads = True
    tables = (_DAILY, _END_USER)
    ddl = _SQL

    def begin(self) -> UsageFold:
        return UsageFold()

    async def changes(self, _: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        fold = self.begin()
        fold.feed(facts)
        rows = fold.rows()
        limits = (b"%d" % TOKENS_MAX, str(COST_USD_MAX).encode())
        return [
            Statement(_ADD_USAGE, (records(_DAILY, rows), *limits)),
            Statement(_ADD_END_USERS, (records(_END_USER, rows),)),
        ]
