"""Pages of events: of so many events at most, and of so many bytes, because one event can be as large as ten thousand others.

A statement that reads a page adds up what its events weigh, in their order, and ends with the one that makes it full. So a page
has at least one event, and no more of what it cannot hold than that one.
"""

from __future__ import annotations

from typing import Final

from psycopg import sql

from events.sql import Statements, template

#: How many bytes of payloads are read at a time.
PAGE_BYTES: Final = 8 * 2**20

_WEIGHT = Statements("events", "pages.sql")["weight"]


def paged(statement: bytes) -> bytes:
    """`statement` with what the payload of its event `e` weighs in place of `{weight}`."""
    return statement.replace(b"{weight}", _WEIGHT)


def weight() -> sql.SQL:
    """What the payload of the event `e` weighs, for statements that are composed."""
    return template(_WEIGHT)


def may_go_on(*, events: int, events_max: int, weight: int) -> bool:
    """Whether more may follow a page of so many `events` that weigh so much: it is full."""
    return events >= events_max or weight >= PAGE_BYTES
