"""Compares streams with their rows as soon as they are whole, while their lanes are verified.

The rows of nearly all streams are what they must be, and to see that, nothing has to be read of the log a second time. What does not
match, for whatever reason, is for those to look into who read history and rows in one snapshot (`tables`).
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

#: Of how many streams is known how long they are, at most; others are left to those who look closely.
LENGTHS_MAX = 500_000


class Matching:
    """Of these lanes, which are verified from the beginning."""

    def __init__(self, connection: Connection, lanes: Collection[int]) -> None:
        self._connection = connection
        self._lanes = frozenset(lanes)
        self._projections = served(connection).inline if lanes else []
        #: How many events each stream has that matches, by the bytes of its id.
        self.found: dict[bytes, int] = {}
        lengths: dict[bytes, int] = {}
        if self._projections:
            asked = {"lanes": list(lanes), "limit": LENGTHS_MAX}
            (known,) = connection.execute(_LENGTHS_OF_STREAMS, asked, binary=True).fetchall()
            lengths = lengths_of(*known)
        self._histories = Histories(lengths)

    def take(self, lane: int, window: Window) -> int:
        """Take a window of a lane that fits; of how many events the streams are that match, of those that were compared for it."""
        if not self._projections or lane not in self._lanes:
            return 0
        histories = self._histories
        histories.take(lane, window)
        is_enough = histories.events_whole >= tables.EVENTS_MAX or histories.bytes_whole >= pages.PAGE_BYTES
        return self.compare() if is_enough else 0

    def compare(self) -> int:
        """Compare what is whole; of how many events the streams are that match."""
        whole = self._histories.let_go()
        if not whole:
            return 0
        try:
            with self._connection.transaction():
                found = tables.matching(self._connection, whole, self._projections)
        except psycopg.DataError:
            return 0  # Something that the database cannot even compute with.
        self.found |= found
        return sum(found.values())
