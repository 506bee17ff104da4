"""Finds the seals between which the chain of an export runs."""

from __future__ import annotations

from bisect import bisect_left

from psycopg import Connection
from psycopg.rows import class_row

from events.seal import Seal, require_well_formed
from events.sql import Statements

_SQL = Statements("hydracore.audit", "exporting.sql")
_SEAL = _SQL["seal"]
_SEALED_HEAD = _SQL["sealed_head"]
_FIRST_SEAL = _SQL["first_seal"]


class SealFinder:
    """Finds the seals at which the exported part of a lane begins and ends.

    Numbers of seals have no gaps and heads never fall, so that a binary search reads only a few. Raises
    `LogCorrupted` where one of these has values that no seal can have.
    """

    def __init__(self, connection: Connection, newest: Seal | None) -> None:
        self._connection = connection
        self._newest = newest
        self._used: dict[int, Seal] = {} if newest is None else {newest.number: require_well_formed(newest)}
        row = connection.execute(_FIRST_SEAL).fetchone()
        self._first = 1 if row is None else row[0]

    def used_seals(self) -> list[Seal]:
        """The seals that were returned so far, and the newest, in the order of their numbers."""
        return [self._used[number] for number in sorted(self._used)]

    def sealed_head(self, lane: int) -> int:
        """The lane's head in the newest seal; 0 where there is no seal."""
        return 0 if self._newest is None else self._newest.head(lane).seq

    def last_before(self, lane: int, seq: int) -> Seal | None:
        """The newest seal that does not cover `seq`; None where there is none."""
        number = self._first_number_covering(lane, seq) - 1
        return None if number < self._first else self._load(number)

    def first_covering(self, lane: int, seq: int) -> Seal | None:
        """The oldest seal that covers `seq`; None where there is none."""
        number = self._first_number_covering(lane, seq)
        return None if self._newest is None or number > self._newest.number else self._load(number)

    def _first_number_covering(self, lane: int, seq: int) -> int:
        numbers = range(self._first, 1 if self._newest is None else self._newest.number + 1)
        return self._first + bisect_left(numbers, seq, key=lambda number: self._head(lane, number))

    def _head(self, lane: int, number: int) -> int:
        row = self._connection.execute(_SEALED_HEAD, (lane + 1, number), prepare=True).fetchone()
        return 0 if row is None else row[0]

    def _load(self, number: int) -> Seal | None:
        if number not in self._used:
            with self._connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
                seal = cursor.execute(_SEAL, (number,)).fetchone()
            if seal is None:
                return None
            self._used[number] = require_well_formed(seal)
        return self._used[number]
