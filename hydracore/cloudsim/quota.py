"""The project's request limit, a token bucket (https://docs.hetzner.cloud/reference/cloud#rate-limiting).

The real one holds 3,600 requests and is refilled by one per second. Here both are a hundred times
that, so that tests and benchmarks do not meet it; those that want to can make it smaller with `set`.
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
        """Replace the bucket by another one."""
        assert limit >= 1
        assert refill_per_s > 0
        self._limit = limit
        self._refill_per_s = refill_per_s
        self._remaining = float(min(remaining, limit))
        self._filled_at = self._monotonic()

    def take(self) -> bool:
        """Take one request out of the bucket. Returns False if none is left."""
        now = self._monotonic()
        self._remaining = min(float(self._limit), self._remaining + (now - self._filled_at) * self._refill_per_s)
        self._filled_at = now
        if self._remaining < 1.0:
            return False
        self._remaining -= 1.0
        return True

    def headers(self) -> list[tuple[str, str]]:
        """The headers of every answer about the bucket. `ratelimit-reset`: the Unix time at which it is full again."""
        full_in_s = (self._limit - self._remaining) / self._refill_per_s
        return [
            ("ratelimit-limit", str(self._limit)),
            ("ratelimit-remaining", str(int(self._remaining))),
            ("ratelimit-reset", str(int(self._wall() + full_in_s) + 1)),
        ]
