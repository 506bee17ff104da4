"""Converts between times as numbers since 1970, which the log keeps, and datetimes, which tables and seals have. All are UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

#: Where the numbers begin.
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# Cached: the events of one command have the same time, and several tables have it.
@lru_cache(1024)
def to_datetime(at_ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a time."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


def day_of(at_ms: int) -> date:
    """The day that budgets and usage are counted by."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()


def to_microseconds(at: datetime) -> int:
    """Since 1970, as links and seals have it."""
    return (at - EPOCH) // timedelta(microseconds=1)
