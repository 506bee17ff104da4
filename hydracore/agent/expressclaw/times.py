"""Converts the times of the agent's store, in milliseconds since 1970, to those that are shown. Everything is UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def day_of(at_ms: int) -> str:
    """YYYY-MM-DD; its first seven characters are the month."""
    return moment(at_ms).strftime("%Y-%m-%d")
