"""Parses and formats times: RFC 3339, in UTC unless the text has an offset. A date alone is accepted, too."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from events.errors import LogCorrupted
from events.times import EPOCH

NOT_A_TIME: Final = "not a time such as 2026-11-23T20:47:41Z"


#: RFC 3339, in which the offset, the seconds or the whole time of day may be left out. The rest of ISO 8601, such as
#: week dates, is not accepted.
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME: Final = re.compile(
    _DATE.pattern + r"([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?([Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)

_DAY: Final = timedelta(days=1)
_MICROSECOND: Final = timedelta(microseconds=1)


def parse_time(text: str) -> datetime:
    """`text` as a time in UTC. A date alone means its first microsecond; a time without an offset is in UTC.

    Raises `ValueError` with what to write instead.
    """
    if not _TIME.fullmatch(text):
        raise ValueError(NOT_A_TIME)
    try:
        time = datetime.fromisoformat(text.upper())
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(NOT_A_TIME) from None


def parse_end_time(text: str) -> datetime:
    """As `parse_time`, for the end of a period: a date alone means its last microsecond, so it includes the day."""
    time = parse_time(text)
    return time + (_DAY - _MICROSECOND) if _DATE.fullmatch(text) else time


def time_text(time: datetime) -> str:
    """`time` in UTC with microseconds, the precision of the log."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def ms_text(at_ms: int) -> str | int:
    """Milliseconds since 1970 as a time in UTC; the number itself where no calendar has it, as in a forged log."""
    try:
        return time_text(EPOCH + timedelta(milliseconds=at_ms))
    except OverflowError:
        return at_ms


def require_time(lane: int, seq: int, recorded_at: datetime | None) -> datetime:
    """`recorded_at`. Raises `LogCorrupted` where it is None: statements return null for a time that no calendar has."""
    if recorded_at is None:
        raise LogCorrupted(lane, seq, "it was recorded at a time that is out of range")
    return recorded_at
