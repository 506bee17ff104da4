"""The projections that follow the log, each a moment behind it."""

from __future__ import annotations

from projections.follower import FollowedProjection
from projections.usage_daily import UsageDaily


def followed_projections() -> tuple[FollowedProjection, ...]:
    """Everything that need not read its own writes."""
    return (UsageDaily(),)
