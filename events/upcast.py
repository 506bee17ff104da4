"""Upcasters: read events of old schema versions as events of the present version.

The log is never rewritten. When a field's meaning changes, the type's `schema_version` rises by one, and an upcaster from the version
before is added to `STEPS`: a pure function from the old version's JSON object to the next version's. An event of version 1 passes
through all steps up to the present version, so each step is written once and never changed. `tests/corpus/` has a frozen event of
every version that was ever written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import msgspec

from events.codec import decode, tag_of
from events.errors import EventUnreadable
from events.types import AnyEvent, Event

Step = Callable[[dict[str, Any]], dict[str, Any]]

_TYPES: tuple[type[Event], ...] = get_args(AnyEvent)

#: The present schema version of each type, by stored name.
CURRENT_VERSIONS: dict[str, int] = {tag_of(kind): kind.schema_version for kind in _TYPES}

#: Stored names, by the stored name itself and by the name of the class.
TAG_BY_NAME: dict[str, str] = {
    **{tag: tag for tag in CURRENT_VERSIONS},
    **{kind.__name__: tag_of(kind) for kind in _TYPES},
}

#: The upcasters from one version to the next, by stored name and old version. They leave `type` as it is.
STEPS: dict[tuple[str, int], Step] = {}

assert all((tag, version) in STEPS for tag, current in CURRENT_VERSIONS.items() for version in range(1, current)), (
    "every old version has a step to the next"
)


class OutdatedEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="outdated"):
    """An event of another than the present version, as bulk reads return it (`projections/sql_fragments.sql`)."""

    name: str
    schema_version: int
    payload: msgspec.Raw


#: What a bulk read decodes payloads to.
StoredEvent = AnyEvent | OutdatedEvent


def all_to_current(events: Sequence[StoredEvent]) -> Sequence[AnyEvent]:
    """The events, each in its present version. Raises as `read`."""
    # Most histories have no old version. For them, only the types are checked.
    if OutdatedEvent in map(type, events):
        return [to_current(event) for event in events]
    return cast("Sequence[AnyEvent]", events)


def to_current(event: StoredEvent) -> AnyEvent:
    """The event in its present version. Raises as `read`."""
    if isinstance(event, OutdatedEvent):
        return read(bytes(event.payload), tag=event.name, schema_version=event.schema_version)
    return event


def read(payload: str | bytes, *, tag: str, schema_version: int) -> AnyEvent:
    """The event that was stored as `payload` under this name and version.

    Raises `EventUnreadable` for a version that this code does not know (usually a newer one), and `msgspec.ValidationError` for a
    shape that was never written.
    """
    if CURRENT_VERSIONS.get(tag) == schema_version:
        return decode(payload)
    return decode(msgspec.json.encode(_upcast(msgspec.json.decode(payload), tag, schema_version)))


def _upcast(fields: dict[str, Any], tag: str, schema_version: int) -> dict[str, Any]:
    current = CURRENT_VERSIONS.get(tag, 0)
    if schema_version > current or tag not in CURRENT_VERSIONS:
        raise EventUnreadable(tag, schema_version, is_newer=schema_version > current)
    for version in range(schema_version, current):
        step = STEPS.get((tag, version))
        if step is None:
            raise EventUnreadable(tag, schema_version, is_newer=False)
        fields = step(fields)
    return fields
