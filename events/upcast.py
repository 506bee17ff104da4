"""Old versions of events: what was written once is read for ever, as what it means today.

The log is never rewritten. When a field's meaning changes, the type's `schema_version` rises by one, and a step from the
version before goes in `STEPS`: a pure function from the old JSON object to the next version's. A reader of version 1 takes all
steps to the present one after the other, so each step is written once and never touched again. A frozen line of every
version ever written stands in `tests/corpus/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import msgspec

from events.codec import decode
from events.errors import EventUnreadable
from events.types import AnyEvent, Event

Step = Callable[[dict[str, Any]], dict[str, Any]]

_TYPES: tuple[type[Event], ...] = get_args(AnyEvent)

#: The version of today by stored name.
CURRENT: dict[str, int] = {str(kind.__struct_config__.tag): kind.schema_version for kind in _TYPES}

#: The stored name by itself, and by that of the class.
STORED_AS: dict[str, str] = {
    **{tag: tag for tag in CURRENT},
    **{kind.__name__: str(kind.__struct_config__.tag) for kind in _TYPES},
}

#: By stored name and version: the step to the version after it. The object keeps its `type`.
STEPS: dict[tuple[str, int], Step] = {}

assert all((tag, version) in STEPS for tag, current in CURRENT.items() for version in range(1, current)), (
    "every old version has a step to the next"
)


class Outdated(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="outdated"):
    """An event of another version than today's, where it is read among others in bulk (`projections/stored.sql`)."""

    name: str
    schema_version: int
    payload: msgspec.Raw


#: What a payload that was read in bulk is decoded to.
Stored = AnyEvent | Outdated


def all_of_today(events: Sequence[Stored]) -> Sequence[AnyEvent]:
    """The same events, each in its version of today. Raises as `read` does."""
    # Most histories hold no old version: a look at the types is all that it costs them.
    if Outdated in map(type, events):
        return [of_today(event) for event in events]
    return cast("Sequence[AnyEvent]", events)


def of_today(event: Stored) -> AnyEvent:
    """The same event in its version of today. Raises as `read` does."""
    if isinstance(event, Outdated):
        return read(bytes(event.payload), tag=event.name, schema_version=event.schema_version)
    return event


def read(payload: str | bytes, *, tag: str, schema_version: int) -> AnyEvent:
    """The event that was stored as `payload` under this name and version.

    Raises `EventUnreadable` for a version that this code does not know (a newer one, as a rule), and
    `msgspec.ValidationError` for a shape that was never written.
    """
    if CURRENT.get(tag) == schema_version:
        return decode(payload)
    return decode(msgspec.json.encode(_to_the_present(msgspec.json.decode(payload), tag, schema_version)))


def _to_the_present(fields: dict[str, Any], tag: str, schema_version: int) -> dict[str, Any]:
    current = CURRENT.get(tag, 0)
    if schema_version > current or tag not in CURRENT:
        raise EventUnreadable(tag, schema_version, is_newer=schema_version > current)
    for version in range(schema_version, current):
        step = STEPS.get((tag, version))
        if step is None:
            raise EventUnreadable(tag, schema_version, is_newer=False)
        fields = step(fields)
    return fields
