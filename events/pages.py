"""Pages of events, bounded by a count and by bytes: one event can be as large as ten thousand others.

A statement that reads a page adds up the sizes of the payloads in order, and ends with the event that fills the page. So a page has
at least one event, and exceeds its bytes by one event at most.
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from events.sql import Statements, template

#: Bytes of payloads per page.
PAGE_BYTES: Final = 8 * 2**20

_WEIGHT = Statements("events", "pages.sql")["weight"]


def insert_weight(statement: bytes) -> bytes:
    """`statement` with `{weight}` replaced by the expression for the size of the payload of its event `e`, in bytes."""
    return statement.replace(b"{weight}", _WEIGHT)


def weight() -> sql.SQL:
    """The expression for the size of the payload of the event `e`, in bytes, for composed statements."""
    return template(_WEIGHT)


def is_full(*, events: int, events_max: int, weight: int) -> bool:
    """Whether the page is full, so that more events may follow. `weight`: bytes of its payloads."""
    return events >= events_max or weight >= PAGE_BYTES
