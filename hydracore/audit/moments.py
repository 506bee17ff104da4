"""Times as people write and read them: RFC 3339, in UTC unless the text says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from events.errors import LogCorrupted
from events.times import EPOCH

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


def ms_text(at_ms: int) -> str | int:
    """Milliseconds since 1970 as a time in UTC; the number itself where no calendar has it, as in a log that was forged."""
    try:
        return time_text(EPOCH + timedelta(milliseconds=at_ms))
    except OverflowError:
        return at_ms


def some_time(lane: int, seq: int, recorded_at: datetime | None) -> datetime:
    """When something was recorded. Raises `LogCorrupted` where no calendar has that time, which is None here."""
    if recorded_at is None:
        raise LogCorrupted(lane, seq, "it was recorded at a time that no calendar has")
    return recorded_at
