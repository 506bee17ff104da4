"""Digests: no field can change, move into its neighbour, or be left out without a change of the digest."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from events.digest import GENESIS, chain_link, command_digest, event_digest

EVENT: dict[str, Any] = {
    "stream_id": UUID(int=1),
    "version": 7,
    "tag": "server_created",
    "schema_version": 1,
    "payload": b'{"type":"server_created"}',
}
COMMAND: dict[str, Any] = {
    "command_id": UUID(int=2),
    "stream_id": UUID(int=1),
    "tenant_id": "acme",
    "name": "RecordServerCreated",
    "actor": "worker",
    "correlation_id": UUID(int=3),
    "causation_id": UUID(int=4),
    "request_hash": b"h" * 32,
    "result": b"{}",
    "event_digests": [b"a" * 32, b"b" * 32],
}
LINK: dict[str, Any] = {"previous": GENESIS, "command": b"c" * 32, "first_seq": 9, "recorded_us": 1_790_000_000_000_000}

#: Frozen: a digest that changes breaks every log that exists.
EVENT_DIGEST = "d78df5aa9d95d650db9aae102ef9a10f01be62481a69d7031dc43e0626225f33"
COMMAND_DIGEST = "042c67fd2d1797fa2cb5834750fd20a6516929e72872593ff4eef6023d87245c"
LINK_DIGEST = "c6f771a16fba415fa18d3f2a96e457aeaba1ce7dd78b4b717a020c8fa1b2eb11"

OTHER_EVENTS = [
    {"stream_id": UUID(int=2)},
    {"version": 8},
    {"tag": "server_createD"},
    {"schema_version": 2},
    {"payload": b'{"type": "server_created"}'},
    {"tag": "server_create", "payload": b'd{"type":"server_created"}'},
]
OTHER_COMMANDS = [
    {"command_id": UUID(int=5)},
    {"stream_id": UUID(int=5)},
    {"tenant_id": "acm"},
    {"name": "X"},
    {"actor": "admin:x"},
    {"tenant_id": "acmeR", "name": "ecordServerCreated"},
    {"correlation_id": UUID(int=5)},
    {"causation_id": None},
    {"request_hash": None},
    {"request_hash": b""},
    {"result": None},
    {"event_digests": [b"a" * 32]},
    {"event_digests": [b"b" * 32, b"a" * 32]},
]
OTHER_LINKS = [{"previous": b"p" * 32}, {"command": b"d" * 32}, {"first_seq": 10}, {"recorded_us": 1}]


@pytest.mark.parametrize("change", OTHER_EVENTS, ids=str)
def test_a_change_in_any_field_of_an_event_changes_its_digest(change: dict[str, Any]) -> None:
    assert event_digest(**EVENT | change) != event_digest(**EVENT)


@pytest.mark.parametrize("change", OTHER_COMMANDS, ids=str)
def test_a_change_in_any_field_of_a_command_changes_its_digest(change: dict[str, Any]) -> None:
    assert command_digest(**COMMAND | change) != command_digest(**COMMAND)


@pytest.mark.parametrize("change", OTHER_LINKS, ids=str)
def test_a_change_in_any_field_of_a_chain_link_changes_its_hash(change: dict[str, Any]) -> None:
    assert chain_link(**LINK | change) != chain_link(**LINK)


def test_an_absent_field_and_an_empty_field_give_different_digests() -> None:
    absent: dict[str, Any] = COMMAND | {"request_hash": None}
    empty: dict[str, Any] = COMMAND | {"request_hash": b""}
    assert command_digest(**absent) != command_digest(**empty)


def test_digests_of_known_inputs_never_change() -> None:
    assert event_digest(**EVENT).hex() == EVENT_DIGEST
    assert command_digest(**COMMAND).hex() == COMMAND_DIGEST
    assert chain_link(**LINK).hex() == LINK_DIGEST
