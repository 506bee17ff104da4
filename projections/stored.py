"""Payloads, and facts, on their way out of the log in bulk: parts of the statements that read them."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from events import upcast
from events.sql import Statements

_PAYLOAD: Any = Statements("projections", "stored.sql")["payload"].decode()
_FACT: Any = Statements("projections", "facts.sql")["fact"].decode()


def payload() -> sql.Composed:
    """The expression that gives the payload of the event `e`, to be decoded to `upcast.Stored`."""
    first = [name for name, version in upcast.CURRENT.items() if version == 1]
    later = [f"{name} {version}" for name, version in upcast.CURRENT.items() if version > 1]
    return sql.SQL(_PAYLOAD).format(first=sql.Literal(first), later=sql.Literal(later))


def fact() -> sql.Composed:
    """The expression that gives the event `e` with its command `k` as a fact, as `projections.fact` decodes it."""
    return sql.SQL(_FACT).format(payload=payload())
