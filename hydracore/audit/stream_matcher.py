"""Compares complete streams with their inline rows while their lanes are verified.

The rows of nearly all streams are right, and this shows it without reading the log a second time. Streams that
do not match, for whatever reason, are compared again by `inline_tables`, which reads history and rows in one snapshot.
"""

from __future__ import annotations

from collections.abc import Collection

import psycopg
from psycopg import Connection

from events import pages
from events.sql import Statements
from events.window import Window
from hydracore.audit import inline_tables
from hydracore.audit.history_collector import HistoryCollector
from hydracore.audit.served_projections import find_served_projections
from projections.spilling import lengths_of

_LENGTHS_OF_STREAMS = Statements("projections", "generations.sql")["lengths_of_streams"]

#: The most streams whose lengths are held. Other streams are left to `inline_tables`.
LENGTHS_MAX = 500_000


class StreamMatcher:
    """`lanes`: those that are verified from their beginning."""

    def __init__(self, connection: Connection, lanes: Collection[int]) -> None:
        self._connection = connection
        self._lanes = frozenset(lanes)
        self._projections = find_served_projections(connection).inline if lanes else []
        #: The number of events of each stream that matches, by the bytes of its id.
        self.matched: dict[bytes, int] = {}
        lengths: dict[bytes, int] = {}
        if self._projections:
            parameters = {"lanes": list(lanes), "limit": LENGTHS_MAX}
            (known,) = connection.execute(_LENGTHS_OF_STREAMS, parameters, binary=True).fetchall()
            lengths = lengths_of(*known)
        self._collector = HistoryCollector(lengths)

    def take(self, lane: int, window: Window) -> int:
        """Take a window that fits, and compare once enough streams are complete.

        Returns the number of events of the streams that were found to match.
        """
        if not self._projections or lane not in self._lanes:
            return 0
        collector = self._collector
        collector.take(lane, window)
        is_enough = (
            collector.complete_events >= inline_tables.EVENTS_MAX or collector.complete_bytes >= pages.PAGE_BYTES
        )
        return self.compare() if is_enough else 0

    def compare(self) -> int:
        """Compare the streams that are complete. Returns the number of events of those that match."""
        histories = self._collector.pop_complete()
        if not histories:
            return 0
        try:
            with self._connection.transaction():
                found = inline_tables.matching_streams(self._connection, histories, self._projections)
        except psycopg.DataError:
            return 0  # A value that the database cannot process.
        self.matched |= found
        return sum(found.values())
