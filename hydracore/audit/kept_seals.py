"""Some of many seals, in as little memory however many there are.

A lane's link stands for all before it, so that the newest seal alone shows that something before it was rewritten. The others
tell where: evenly spread, they bound it.
"""

from __future__ import annotations

from events.seal import Seal

#: How many are kept: of more every second, of more than twice as many every fourth, and so on; and always the newest.
KEPT_MAX = 1_024


class KeptSeals:
    """Seals that were added in the order of their numbers."""

    def __init__(self) -> None:
        self.seals: list[Seal] = []
        self._step = 1
        self._added = 0

    def add(self, seal: Seal) -> None:
        if self._added and (self._added - 1) % self._step:
            # The last one was there for being the newest only.
            self.seals.pop()
        elif len(self.seals) == KEPT_MAX:
            del self.seals[1::2]
            self._step *= 2
        self.seals.append(seal)
        self._added += 1
