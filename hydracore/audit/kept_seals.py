"""Keeps a selection of seals in bounded memory.

A lane's link covers all before it, so that the newest seal alone shows whether something before it was
rewritten. The others, evenly spread, narrow down where.
"""

from __future__ import annotations

from events.seal import Seal

#: The most seals that are kept. Of more than that, every second is kept, of more than twice that, every
#: fourth, and so on; and always the newest.
KEPT_MAX = 1_024


class KeptSeals:
    """The selection. Seals have to be added in the order of their numbers."""

    def __init__(self) -> None:
        self.seals: list[Seal] = []
        self._step = 1
        self._added = 0

    def add(self, seal: Seal) -> None:
        if self._added and (self._added - 1) % self._step:
            # The last one was kept only because it was the newest.
            self.seals.pop()
        elif len(self.seals) == KEPT_MAX:
            del self.seals[1::2]
            self._step *= 2
        self.seals.append(seal)
        self._added += 1
