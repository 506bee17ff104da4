"""Compares whole streams with their rows while their lanes are verified.

The rows of nearly all streams are right, and this shows it without reading the log a second time. Streams that
do not match, for whatever reason, are compared again by `tables`, which reads history and rows in one snapshot.
"""

from __future__ import annotations

from collections.abc import Collection

import psycopg
from psycopg import Connection

from events import pages
from events.sql import Statements
from events.window import Window
from hydracore.audit import tables
from hydracore.audit.histories import Histories
from hydracore.audit.served import served
from projections.spilling import lengths_of

_LENGTHS_OF_STREAMS = Statements("projections", "generations.sql")["lengths_of_streams"]

#: The most streams whose lengths are held. Other streams are left to `tables`.
LENGTHS_MAX = 500_000


class Matching:
    """`lanes`: those that are verified from their beginning."""

    def __init__(self, connection: Connection, lanes: Collection[int]) -> None:
        self._connection = connection
        self._lanes = frozenset(lanes)
        self._projections = served(connection).inline if lanes else []
        #: The number of events of each stream that matches, by the bytes of its id.
        self.found: dict[bytes, int] = {}
        lengths: dict[bytes, int] = {}
        if self._projections:
            asked = {"lanes": list(lanes), "limit": LENGTHS_MAX}
            (known,) = connection.execute(_LENGTHS_OF_STREAMS, asked, binary=True).fetchall()
            lengths = lengths_of(*known)
        self._histories = Histories(lengths)

    def take(self, lane: int, window: Window) -> int:
        """Take a window that fits, and compare once enough streams are whole.

        Returns the number of events of the streams that were found to match.
        """
        if not self._projections or lane not in self._lanes:
            return 0
        histories = self._histories
        histories.take(lane, window)
        is_enough = histories.events_whole >= tables.EVENTS_MAX or histories.bytes_whole >= pages.PAGE_BYTES
        return self.compare() if is_enough else 0

    def compare(self) -> int:
        """Compare the streams that are whole. Returns the number of events of those that match."""
        whole = self._histories.let_go()
        if not whole:
            return 0
        try:
            with self._connection.transaction():
                found = tables.matching(self._connection, whole, self._projections)
        except psycopg.DataError:
            return 0  # A value that the database cannot process.
        self.found |= found
        return sum(found.values())
