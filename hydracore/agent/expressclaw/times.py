"""Times as the agent's store keeps them, which are milliseconds since 1970, and as they are told. Everything is UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def day_of(at_ms: int) -> str:
    """YYYY-MM-DD; its first seven characters are the month."""
    return moment(at_ms).strftime("%Y-%m-%d")
