"""What an audit shows of events and states: every change, and nothing that is sealed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, get_args, get_type_hints
from uuid import UUID

import msgspec
import pytest

from events import commands as c
from events import types as e
from events.codec import tag_of
from events.evolve import evolve
from events.state import Config, Instance
from events.types import Sealed
from hydracore.audit.changes import changes_between, leaves
from hydracore.audit.historical_state import HistoricalState
from hydracore.audit.history import Entry, Record
from hydracore.audit.history_rendering import (
    PARTLY_SEALED_FIELDS,
    SEALED,
    SEALED_FIELDS,
    hide_sealed,
    render_event,
    render_state,
)
from hydracore.audit.timestamps import parse_end_time, parse_time, time_text
from tests import lifecycle
from tests.lifecycle import NOW_MS, InMemoryInstance
from tests.unit.test_erasure import FULL

CIPHERTEXT = "v1." + "QUJD" * 12
#: Commands that set every sealed field and lists with sealed texts, and then erase the customer.
SECRETIVE = (
    *FULL,
    c.PatchPlatformConfig(at_ms=NOW_MS, integrations=({"id": "mail", "token": CIPHERTEXT}, ["v1.2 of it", CIPHERTEXT])),
    c.EraseCustomer(at_ms=NOW_MS),
)


def entries(life: InMemoryInstance) -> list[Entry]:
    states: list[Instance | None] = [None]
    for event in life.events:
        states.append(evolve(states[-1], event, stream_id=life.id))
    at = datetime(2026, 11, 23, tzinfo=UTC)
    found = []
    for version, (event, (before, after)) in enumerate(zip(life.events, pairwise(states), strict=True), 1):
        assert after is not None
        who = (UUID(int=1), "Test", "worker", UUID(int=2), None)
        found.append(Entry(Record(6, version, life.id, version, tag_of(event), 1, "", at, *who), event, before, after))
    return found


def test_the_audit_knows_every_sealed_field() -> None:
    shapes: list[Any] = [Instance, Config, *get_args(e.AnyEvent)]
    hints = {name: hint for shape in shapes for name, hint in get_type_hints(shape).items()}

    assert {name for name, hint in hints.items() if Sealed in get_args(hint)} == SEALED_FIELDS
    assert hints.keys() >= PARTLY_SEALED_FIELDS


async def test_hashes_of_credentials_are_masked_in_every_rendered_event() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.delete(), lifecycle.teardown("key_revoked"))
    rendered = [await render_event(entry, hide_sealed) for entry in entries(life)]
    text = msgspec.json.encode(rendered).decode()

    hashes = {
        life.state.attempt and life.state.attempt.enrol_token_hash,
        life.state.agent and life.state.agent.control_key_hash,
    }
    assert None not in hashes
    assert not [each for each in hashes if str(each) in text]


async def test_secrets_that_were_stored_unsealed_are_masked() -> None:
    old = {
        "id": "mail",
        "smtp": {"pass": "hunter2-hunter2"},
        "endpoint": "https://ann:hunter2@crm.test",
        "token": CIPHERTEXT,
    }
    life = InMemoryInstance.after(*lifecycle.RUNNING, c.PatchPlatformConfig(at_ms=NOW_MS, integrations=(old,)))

    event = await render_event(entries(life)[-1], hide_sealed)

    assert event.fields["integrations"] == [
        {"id": "mail", "smtp": {"pass": "****ter2"}, "endpoint": "****test", "token": SEALED}
    ]
    assert event.changes[-1].after == event.fields["integrations"]


async def test_no_ciphertext_is_shown_in_any_event_or_state() -> None:
    life = InMemoryInstance.after(*SECRETIVE)

    shown = [msgspec.json.encode(await render_event(entry, hide_sealed)) for entry in entries(life)]
    states = [
        msgspec.json.encode(await render_state(HistoricalState(each.after, each.record.recorded_at), hide_sealed))
        for each in entries(life)
    ]

    # Nine texts, each three times: in the fields of its event, in what that changed, and in what the erasure cleared.
    assert sum(text.count(SEALED.encode()) for text in shown) == 3 * 9
    assert b'["v1.2 of it","(sealed)"]' in shown[-2]
    assert not [text for text in shown + states if b"v1.c2" in text or CIPHERTEXT.encode() in text]
    # Nor is the whole hash of a token.
    assert not [text for text in shown + states if lifecycle.token_hash().encode() in text]


@pytest.mark.parametrize(
    "way", [*lifecycle.COMMANDS_TO_STATUS.values(), SECRETIVE], ids=[*lifecycle.COMMANDS_TO_STATUS, "erased"]
)
def test_the_changes_of_all_events_add_up_to_the_state(way: tuple[c.AnyCommand, ...]) -> None:
    life = InMemoryInstance.after(*way)
    fields: dict[str, Any] = {}

    for entry in entries(life):
        for change in changes_between(entry.before, entry.after):
            assert fields.get(change.field) == change.before
            assert change.before != change.after
            fields[change.field] = change.after

    stated = dict(leaves("", msgspec.to_builtins(life.state)))
    not_shown = {"id", "version", "updated_ms"}
    assert {name for name, value in fields.items() if value is not None} == {
        name for name, value in stated.items() if value not in (None, {})
    } - not_shown
    assert all(fields[name] == stated.get(name) for name in fields)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-23T20:47:41Z", "2026-11-23T20:47:41.000000Z"),
        ("2026-11-23 20:47:41.1234567", "2026-11-23T20:47:41.123456Z"),
        ("2026-11-23T20:47+02:00", "2026-11-23T18:47:00.000000Z"),
        ("2026-11-23t20:47:41z", "2026-11-23T20:47:41.000000Z"),
        ("2026-11-23", "2026-11-23T00:00:00.000000Z"),
    ],
)
def test_common_forms_of_iso_8601_times_are_accepted(text: str, time: str) -> None:
    assert time_text(parse_time(text)) == time


@pytest.mark.parametrize(
    ("text", "time"),
    [("2026-11-23", "2026-11-23T23:59:59.999999Z"), ("2026-11-23T20:47Z", "2026-11-23T20:47:00.000000Z")],
)
def test_an_end_time_that_is_a_day_includes_the_whole_day(text: str, time: str) -> None:
    assert time_text(parse_end_time(text)) == time


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "2026", "1790000000", "2026-13-01", "0001-01-01T00:00+14:00", "٢"),
        *(
            "20261123",
            "2026-W48-1",
            "2026-11-23T204741Z",
            "2026-11-23_20:47:41",
            "2026-11-23T20:47:41,5Z",
            "2026-11-23Z",
        ),
    ],
)
def test_an_invalid_time_is_refused_with_an_example_of_a_valid_one(text: str) -> None:
    with pytest.raises(ValueError, match="such as 2026-11-23T20:47:41Z"):
        parse_time(text)
