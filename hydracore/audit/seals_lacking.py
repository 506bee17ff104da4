"""Finds the seals of the database that the copy outside it lacks.

A seal is copied right after it was made, so that the copy may lack a few new ones. If it lacks many, or
an old one, seals were removed from it, or the copy is an old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from events.seal import Seal

#: The most seals that a copy may lack at its end without a note: one that is being copied, and one that
#: another relay has just made.
COPY_BEHIND_MAX: Final = 2


class Lacking:
    """Takes note of the seals behind number `newest`, the last one of the copy."""

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._count = 0
        self._oldest: Seal | None = None

    def watched(self, stored: Iterable[Seal]) -> Iterator[Seal]:
        """The same seals, passed on. They have to be in the order of their numbers."""
        for seal in stored:
            if seal.number > self._newest:
                self._count = seal.number - self._newest
                self._oldest = self._oldest or seal
            yield seal

    def is_told_of(self, copied_before: datetime | None) -> bool:
        """Whether the copy lacks more than `COPY_BEHIND_MAX` seals, or one that was made before `copied_before`."""
        if self._count > COPY_BEHIND_MAX:
            return True
        if self._oldest is None or copied_before is None:
            return False
        made_at: Any = self._oldest.sealed_at  # None where no calendar has it.
        return made_at is None or made_at < copied_before
