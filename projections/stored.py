"""Payloads, and facts, on their way out of the log in bulk: parts of the statements that read them."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from events import pages, upcast
from events.sql import Statements

_PAYLOAD: Any = Statements("projections", "stored.sql")["payload"].decode()
_FACTS = Statements("projections", "facts.sql")
_FACT: Any = _FACTS["fact"].decode()
_IS_TOLD: Any = _FACTS["is_told"].decode()
_WEIGHT_OF_TOLD: Any = _FACTS["weight_of_told"].decode()


def payload() -> sql.Composed:
    """The expression that gives the payload of the event `e`, to be decoded to `upcast.Stored`."""
    first = [name for name, version in upcast.CURRENT.items() if version == 1]
    later = [f"{name} {version}" for name, version in upcast.CURRENT.items() if version > 1]
    return sql.SQL(_PAYLOAD).format(first=sql.Literal(first), later=sql.Literal(later))


def fact(told: sql.Composable) -> sql.Composed:
    """The expression that gives the event `e` with its command `k` as a fact, as `projections.fact` decodes it.

    `told`: the names of the types whose events are told with what they say, as an array; null for all.
    """
    return sql.SQL(_FACT).format(payload=payload(), is_told=_is_told(told))


def weight(told: sql.Composable) -> sql.Composed:
    """What the payload of the event `e` weighs as a fact (`events.pages`)."""
    return sql.SQL(_WEIGHT_OF_TOLD).format(weight=pages.weight(), is_told=_is_told(told))


def _is_told(told: sql.Composable) -> sql.Composed:
    return sql.SQL(_IS_TOLD).format(told=told)
