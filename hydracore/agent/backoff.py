"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits that double from `base_s` to `cap_s`, without end. Each is shortened at random by up to half, so that after
    an outage of the control plane not all agents call in the same instant.

    `rand` returns a float in [0, 1).
    """

    def __init__(self, *, base_s: float, cap_s: float, rand: Callable[[], float] = random.random) -> None:
        assert 0 < base_s <= cap_s
        self._base_s = base_s
        self._cap_s = cap_s
        self._rand = rand
        self._next_s = base_s

    def next_wait_s(self) -> float:
        """The wait before the next try, in seconds."""
        full = self._next_s
        self._next_s = min(full * 2, self._cap_s)
        return full * (1 - self._rand() / 2)

    def reset(self) -> None:
        """Start from the shortest wait again, after a success."""
        self._next_s = self._base_s
