"""Old versions of events are read as what they mean today, step by step, and unknown ones are never guessed at."""

from __future__ import annotations

from typing import Any

import pytest

from events import types as e
from events import upcast
from events.errors import EventUnreadable
from events.types import Event

#: Today's `health_changed` says `health`. Two versions that never were: `condition` as a number, then `state` as a word.
OLDEST = b'{"type":"health_changed","at_ms":1,"condition":0}'
OLDER = b'{"type":"health_changed","at_ms":1,"state":"late"}'


def condition_to_state(fields: dict[str, Any]) -> dict[str, Any]:
    condition = fields.pop("condition")
    return {**fields, "state": ("late", "unreachable")[condition]}


def state_to_health(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "health": fields.pop("state")}


@pytest.fixture
def third_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """`health_changed` as if it had been changed twice."""
    monkeypatch.setitem(upcast.CURRENT, "health_changed", 3)
    monkeypatch.setitem(upcast.STEPS, ("health_changed", 1), condition_to_state)
    monkeypatch.setitem(upcast.STEPS, ("health_changed", 2), state_to_health)


@pytest.mark.usefixtures("third_version")
@pytest.mark.parametrize(
    ("schema_version", "payload"),
    [(1, OLDEST), (2, OLDER), (3, b'{"type":"health_changed","at_ms":1,"health":"late"}')],
)
def test_every_version_is_read_as_the_one_of_today(schema_version: int, payload: bytes) -> None:
    event = upcast.read(payload, tag="health_changed", schema_version=schema_version)

    assert event == e.HealthChanged(at_ms=1, health="late")


@pytest.mark.parametrize("schema_version", [0, 2])
def test_a_version_that_nobody_knows_is_refused(schema_version: int) -> None:
    with pytest.raises(EventUnreadable, match=f"Version {schema_version} of health_changed"):
        upcast.read(OLDER, tag="health_changed", schema_version=schema_version)


def test_a_type_that_nobody_knows_is_refused() -> None:
    with pytest.raises(EventUnreadable, match="Version 1 of instance_exploded"):
        upcast.read(b'{"type":"instance_exploded","at_ms":1}', tag="instance_exploded", schema_version=1)


def test_the_present_is_what_the_types_say() -> None:
    assert {kind.__struct_config__.tag: kind.schema_version for kind in Event.__subclasses__()} == upcast.CURRENT
