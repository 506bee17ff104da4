"""The followed projections, which are updated a moment after the log."""

from __future__ import annotations

from projections.activity import Activity
from projections.definition import Followed
from projections.fleet import Fleet
from projections.usage_daily import UsageDaily


def followed_projections() -> tuple[Followed, ...]:
    """The projections whose readers need not see their own writes at once."""
    return (UsageDaily(), Fleet(), Activity())
