"""The project's request limit: a bucket that is filled again steadily (https://docs.hetzner.cloud/reference/cloud#rate-limiting).

The real limit is 3,600 requests filled by one a second. Here it is a hundred times that, because tests and benches are in a
hurry; `set` makes it small for those that want to meet it.
"""

from collections.abc import Callable
from typing import Final

LIMIT_DEFAULT: Final = 360_000
REFILL_PER_S_DEFAULT: Final = 100.0


class Quota:
    """`monotonic` and `wall` are clocks in seconds."""

    def __init__(self, *, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self.set(limit=LIMIT_DEFAULT, remaining=LIMIT_DEFAULT, refill_per_s=REFILL_PER_S_DEFAULT)

    def set(self, *, limit: int, remaining: int, refill_per_s: float) -> None:
        """Start anew with another bucket."""
        assert limit >= 1
        assert refill_per_s > 0
        self._limit = limit
        self._refill_per_s = refill_per_s
        self._remaining = float(min(remaining, limit))
        self._filled_at = self._monotonic()

    def spend(self) -> bool:
        """Take one request out; False when none is left."""
        now = self._monotonic()
        self._remaining = min(float(self._limit), self._remaining + (now - self._filled_at) * self._refill_per_s)
        self._filled_at = now
        if self._remaining < 1.0:
            return False
        self._remaining -= 1.0
        return True

    def headers(self) -> list[tuple[str, str]]:
        """What every answer tells about the bucket; the reset is the Unix time at which it is full again."""
        full_in_s = (self._limit - self._remaining) / self._refill_per_s
        return [
            ("ratelimit-limit", str(self._limit)),
            ("ratelimit-remaining", str(int(self._remaining))),
            ("ratelimit-reset", str(int(self._wall() + full_in_s) + 1)),
        ]
