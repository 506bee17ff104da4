"""Measures how far the copy of the seals lags behind the database.

A seal is copied right after it was made, so that the copy may lack the newest few. If it lacks many, or
an old one, then seals were removed from its end, or an outdated copy was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from events.seal import Seal

#: The most seals that a copy may lack at its end without a note: one that is being copied, and one that
#: another relay has just made.
COPY_LAG_MAX: Final = 2


class CopyLag:
    """Counts the seals of the database with a number above `newest`, which is the last one in the copy."""

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._count = 0
        self._oldest: Seal | None = None

    def observe(self, stored: Iterable[Seal]) -> Iterator[Seal]:
        """Pass the seals of the database on, and count those that the copy lacks. They must come in order of number."""
        for seal in stored:
            if seal.number > self._newest:
                self._count = seal.number - self._newest
                self._oldest = self._oldest or seal
            yield seal

    def is_excessive(self, copied_before: datetime | None) -> bool:
        """Whether the copy lacks more than `COPY_LAG_MAX` seals, or one that was made before `copied_before`."""
        if self._count > COPY_LAG_MAX:
            return True
        if self._oldest is None or copied_before is None:
            return False
        made_at: Any = self._oldest.sealed_at  # None where no calendar has it.
        return made_at is None or made_at < copied_before
