"""Fragments of SQL that read payloads and facts from the log in bulk."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from psycopg import sql

from events import pages, upcast
from events.sql import Statements, template
from events.types import AnyEvent
from events.upcast import StoredEvent, all_to_current

_PAYLOAD = template(Statements("projections", "sql_fragments.sql")["payload"])
_FACTS = Statements("projections", "facts.sql")
_FACT = template(_FACTS["fact"])
_WITH_PAYLOAD = template(_FACTS["with_payload"])
_WEIGHT = template(_FACTS["weight"])

_events: msgspec.json.Decoder[list[StoredEvent]] = msgspec.json.Decoder(list[StoredEvent])


def payload() -> sql.Composed:
    """The expression for the payload of the event `e`, for decoding as `upcast.StoredEvent`, as `events_of` does."""
    first = [name for name, version in upcast.CURRENT_VERSIONS.items() if version == 1]
    later = [f"{name} {version}" for name, version in upcast.CURRENT_VERSIONS.items() if version > 1]
    return _PAYLOAD.format(first=sql.Literal(first), later=sql.Literal(later))


def events_of(payloads: str | bytes) -> Sequence[AnyEvent]:
    """The events of a JSON array of payloads, each upcast to its current version. Raises as `upcast.read` does."""
    return all_to_current(_events.decode(payloads))


def fact(payload_types: sql.Composable) -> sql.Composed:
    """The expression for the event `e` and its command `k` as a fact, for decoding by `projections.fact`.

    `payload_types`: the stored names of the types whose payloads are included, as an array; null for all.
    """
    return _FACT.format(payload=payload(), with_payload=_with_payload(payload_types))


def weight(payload_types: sql.Composable) -> sql.Composed:
    """The expression for the weight (`events.pages`) of the payload of the event `e` in a fact."""
    return _WEIGHT.format(weight=pages.weight(), with_payload=_with_payload(payload_types))


def _with_payload(payload_types: sql.Composable) -> sql.Composed:
    return _WITH_PAYLOAD.format(payload_types=payload_types)
