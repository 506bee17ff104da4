"""Times as people write and read them: RFC 3339, in UTC unless the text says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

NOT_A_TIME: Final = "not a time; write it like 2026-11-23T20:47:41Z"


def read_time(text: str) -> datetime:
    """`text` as a time in UTC; a date alone is its first moment, and without an offset it is UTC's.

    Raises `ValueError` with what to write instead.
    """
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(NOT_A_TIME) from None


def time_text(time: datetime) -> str:
    """`time` in UTC, to the microsecond that the log keeps."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
