"""Old versions of events are upgraded step by step to the current one, and unknown ones are refused."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from events import types as e
from events import upcast
from events.codec import encode
from events.errors import EventUnreadable
from events.types import AnyEvent, Event

#: `events-vN.jsonl`: events that were written as version N of their type, one per line; the number of its frozen lines, and their digest.
CORPUS = Path(__file__).parents[1] / "corpus"
FROZEN = {"events-v1.jsonl": (37, "618aca8c2628f947aea2ece97d7e0aed810eb4b497a2739a6322b5f4a484ab21")}

#: Today's `health_changed` has the field `health`. Two made-up earlier versions: `condition` as a number, then `state` as a word.
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
    monkeypatch.setitem(upcast.CURRENT_VERSIONS, "health_changed", 3)
    monkeypatch.setitem(upcast.STEPS, ("health_changed", 1), condition_to_state)
    monkeypatch.setitem(upcast.STEPS, ("health_changed", 2), state_to_health)


@pytest.mark.usefixtures("third_version")
@pytest.mark.parametrize(
    ("schema_version", "payload"),
    [(1, OLDEST), (2, OLDER), (3, b'{"type":"health_changed","at_ms":1,"health":"late"}')],
)
def test_every_known_version_is_read_as_the_current_one(schema_version: int, payload: bytes) -> None:
    event = upcast.read(payload, tag="health_changed", schema_version=schema_version)

    assert event == e.HealthChanged(at_ms=1, health="late")


@pytest.mark.parametrize("schema_version", [0, 2])
def test_an_unknown_version_of_an_event_is_refused(schema_version: int) -> None:
    with pytest.raises(EventUnreadable, match=f"Version {schema_version} of event health_changed"):
        upcast.read(OLDER, tag="health_changed", schema_version=schema_version)


@pytest.mark.parametrize("schema_version", [0, -1])
def test_a_version_that_no_release_writes_is_not_taken_for_one_of_a_newer_release(schema_version: int) -> None:
    with pytest.raises(EventUnreadable) as newer:
        upcast.read(OLDER, tag="health_changed", schema_version=2)
    with pytest.raises(EventUnreadable) as made_up:
        upcast.read(OLDER, tag="instance_exploded", schema_version=schema_version)

    assert (newer.value.is_newer, made_up.value.is_newer) == (True, False)


def test_an_unknown_event_type_is_refused() -> None:
    with pytest.raises(EventUnreadable, match="Version 1 of event instance_exploded"):
        upcast.read(b'{"type":"instance_exploded","at_ms":1}', tag="instance_exploded", schema_version=1)


def test_the_current_versions_are_those_of_the_event_types() -> None:
    assert {
        kind.__struct_config__.tag: kind.schema_version for kind in Event.__subclasses__()
    } == upcast.CURRENT_VERSIONS


def test_the_allowed_values_of_a_field_change_only_with_the_event_s_version() -> None:
    """An earlier release would take an event with a new value for a broken one; a new version tells it that the event is newer."""
    closed = {
        (kind.__struct_config__.tag, kind.schema_version, field.name): get_args(field.type)
        for kind in get_args(AnyEvent)
        for field in msgspec.structs.fields(kind)
        if get_origin(field.type) is Literal
    }
    stages = ("booted", "enrolled", "secrets", "configured", "runtime_started", "healthy")
    steps = ("key_revoked", "drained", "server_deleted", "absence_verified", "artifacts_deleted", "addresses_freed")
    assert closed == {
        ("agent_key_revoked", 1, "reason"): ("rotation", "deletion"),
        ("bootstrap_reported", 1, "stage"): stages,
        ("bootstrap_reported", 1, "level"): ("info", "warning", "error"),
        ("health_changed", 1, "health"): ("healthy", "late", "unreachable"),
        ("teardown_step_done", 1, "step"): steps,
        ("teardown_blocked", 1, "step"): steps,
    }


# --- the corpus ------------------------------------------------------------------------------------------------------


def corpus() -> Iterator[tuple[str, int, bytes]]:
    """Every line of the corpus: the type's stored name, its version, and the payload."""
    for path in sorted(CORPUS.glob("events-v*.jsonl")):
        for line in path.read_bytes().splitlines():
            yield msgspec.json.decode(line)["type"], int(path.stem.removeprefix("events-v")), line


def test_existing_lines_of_the_corpus_never_change() -> None:
    assert {path.name for path in CORPUS.glob("events-v*.jsonl")} == set(FROZEN)
    for name, (count, digest) in FROZEN.items():
        lines = (CORPUS / name).read_bytes().splitlines(keepends=True)
        assert sha256(b"".join(lines[:count])).hexdigest() == digest


def test_the_corpus_has_every_version_of_every_event_and_a_value_for_every_field() -> None:
    written = {(tag, version) for tag, version, _ in corpus()}
    assert written == {(tag, version) for tag, now in upcast.CURRENT_VERSIONS.items() for version in range(1, now + 1)}
    for kind in get_args(AnyEvent):
        tag = kind.__struct_config__.tag
        current = [
            msgspec.json.decode(line)
            for name, version, line in corpus()
            if (name, version) == (tag, upcast.CURRENT_VERSIONS[tag])
        ]
        # A renamed field is found here, as one that was never written.
        assert set[str]().union(*current) == {"type", *kind.__struct_fields__}


@pytest.mark.parametrize(("tag", "version", "line"), list(corpus()))
def test_every_event_of_the_corpus_can_be_read(tag: str, version: int, line: bytes) -> None:
    event = upcast.read(line, tag=tag, schema_version=version)

    assert event.__struct_config__.tag == tag
    if version == upcast.CURRENT_VERSIONS[tag]:
        assert encode(event) == line
