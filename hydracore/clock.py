"""The time of day by this machine's clock. Only those who start a part take it from here; the rest are given a clock."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Tells the time of day, in milliseconds since 1970.
NowMs = Callable[[], int]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
