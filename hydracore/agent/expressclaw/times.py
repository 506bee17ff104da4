"""Converts the times of the agent's store, in milliseconds since 1970, to those that are shown. Everything is UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_datetime(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def utc_day(at_ms: int) -> str:
    """YYYY-MM-DD; its first seven characters are the month."""
    return utc_datetime(at_ms).strftime("%Y-%m-%d")
