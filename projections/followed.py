"""The projections that follow the log, each a moment behind it."""

from __future__ import annotations

from projections.activity import Activity
from projections.definition import Followed
from projections.fleet import Fleet
from projections.usage_daily import UsageDaily


def followed_projections() -> tuple[Followed, ...]:
    """Everything that need not read its own writes."""
    return (UsageDaily(), Fleet(), Activity())
