"""Keeps a sample of the seals in bounded memory: evenly spaced ones, and always the newest.

A lane's link covers everything before it, so that the newest seal alone shows whether something before it was
rewritten. The others narrow down where.
"""

from __future__ import annotations

from events.seal import Seal

#: The most seals in a sample. Beyond that, every second seal is kept; beyond twice that, every fourth, and so on.
#: The newest is always kept.
SAMPLE_MAX = 1_024


class SealSample:
    """The sample. Seals must be added in the order of their numbers."""

    def __init__(self) -> None:
        self.seals: list[Seal] = []
        self._step = 1
        self._added = 0

    def add(self, seal: Seal) -> None:
        if self._added and (self._added - 1) % self._step:
            # The last one was kept only because it was the newest.
            self.seals.pop()
        elif len(self.seals) == SAMPLE_MAX:
            del self.seals[1::2]
            self._step *= 2
        self.seals.append(seal)
        self._added += 1
