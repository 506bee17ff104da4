"""Whatever is done to a log is found, and where it was done."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from events import lane_verification
from events.verification_findings import Finding
from tests.sealed_log import LANE, Forger, sealed_log
from tests.services import Services
from tests.tampering import forger, lane_findings, made_once

__all__ = ["forger"]

EVENT = "UPDATE event SET {} WHERE lane = 6 AND seq = {}"
COMMAND = "UPDATE command SET {} WHERE lane = 6 AND first_seq = {}"
DROP_EVENT = "DELETE FROM event WHERE lane = 6 AND seq = {}"
DROP_COMMAND = "DELETE FROM command WHERE lane = 6 AND first_seq = {}"
INSERT_EVENT = (
    "INSERT INTO event (lane, seq, stream_id, version, tenant_id, type, schema_version, payload, digest, command_id,"
    " recorded_at) SELECT lane, {}, stream_id, 90, tenant_id, type, schema_version, payload, digest, command_id,"
    " recorded_at FROM event WHERE lane = 6 AND seq = 12"
)
REPEAT_EVENT = (
    "ALTER TABLE event DROP CONSTRAINT event_pkey",
    "DROP INDEX event_lane_stream_version",
    "INSERT INTO event SELECT * FROM event WHERE lane = 6 AND seq = 5",
)
FORGE = "payload = replace(payload::text, 'first', 'forged')::json"

Place = tuple[str, int | None]


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")):
            pass

    with made_once(services, "tampering", make) as url:
        yield url


def places(findings: list[Finding]) -> set[Place]:
    return {(finding.kind, finding.seq) for finding in findings if finding.lane == LANE}


#: What a version that was left out shows in; and what a command shows in that was made to begin at an event too late.
GAP: set[Place] = {("version_gap", 12), ("tail_missing", 13)}
LATER: set[Place] = {("event_extra", 4), ("event_edited", 7), ("command_edited", 5), ("command_overlaps", 7)}


def test_what_was_left_alone_is_as_it_must_be(forger: Forger) -> None:
    assert lane_findings(forger, replay=True) == []


def swapped(statement: str, column: str, one: int, other: int) -> tuple[str, str, str]:
    return (
        statement.format(f"{column} = -1", one),
        statement.format(f"{column} = {one}", other),
        statement.format(f"{column} = {other}", -1),
    )


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        # The payload, with its digest as it was.
        ([EVENT.format(FORGE, 7)], {("event_edited", 7)}),
        ([EVENT.format("payload = (payload::text || ' ')::json", 7)], {("event_edited", 7)}),
        # What else stands in an event's row.
        ([EVENT.format("type = 'instance_deleted'", 7)], {("event_edited", 7)}),
        ([EVENT.format("schema_version = 2", 5)], {("event_edited", 5)}),
        ([EVENT.format("version = 90", 8)], {("event_edited", 8)}),
        ([EVENT.format("version = -1", 8)], {("event_edited", 8)}),
        ([EVENT.format("tenant_id = 'other'", 5)], {("event_edited", 5)}),
        ([EVENT.format("recorded_at = recorded_at - interval '1 us'", 9)], {("event_edited", 9)}),
        ([EVENT.format("recorded_at = '-infinity'", 9)], {("event_edited", 9)}),
        ([EVENT.format("command_id = gen_random_uuid()", 1)], {("event_edited", 1)}),
        ([EVENT.format("digest = sha256('x')", 12)], {("event_edited", 12), ("command_edited", 12)}),
        # Who did it, and why.
        ([COMMAND.format("actor = 'customer:eve'", 8)], {("command_edited", 8)}),
        ([COMMAND.format("name = 'RequestDeletion'", 4)], {("command_edited", 4)}),
        ([COMMAND.format("correlation_id = gen_random_uuid()", 8)], {("command_edited", 8)}),
        ([COMMAND.format("causation_id = command_id", 8)], {("command_edited", 8)}),
        ([COMMAND.format("request_hash = ''", 1)], {("command_edited", 1)}),
        ([COMMAND.format("result = '{}'", 1)], {("command_edited", 1)}),
        (
            [COMMAND.format("recorded_at = '-infinity'", 12)],
            {("event_edited", 12), ("chain_broken", 12)},
        ),
        ([COMMAND.format("event_count = 1", 4)], {("command_edited", 4), ("event_extra", 5), ("event_extra", 6)}),
        ([COMMAND.format("event_count = 4", 4)], {("command_edited", 4), ("event_edited", 7), ("command_overlaps", 7)}),
        ([COMMAND.format("link = sha256('x')", 10)], {("chain_broken", 10), ("chain_broken", 11)}),
        # Fewer events than there were.
        ([DROP_EVENT.format(5)], {("event_missing", 5)}),
        ([DROP_EVENT.format(12)], {("event_missing", 12), ("tail_missing", 12), ("stream_wrong", None)}),
        ([DROP_EVENT.format(9), DROP_COMMAND.format(9)], {("event_missing", 9), ("chain_broken", 10)}),
        ([DROP_COMMAND.format(7)], {("event_extra", 7), ("chain_broken", 8)}),
        # More than there were.
        ([DROP_EVENT.format(12), DROP_COMMAND.format(12)], {("tail_missing", 12), ("stream_wrong", None)}),
        ([INSERT_EVENT.format(13)], {("event_extra", 13)}),
        ([INSERT_EVENT.format(0)], {("event_extra", 0)}),
        ([*REPEAT_EVENT], {("event_extra", 5)}),
        (
            [*REPEAT_EVENT, EVENT.format("version = 90", "5 AND ctid > (SELECT min(ctid) FROM event WHERE seq = 5)")],
            {("event_extra", 5)},
        ),
        # Two that changed places: of two commands, of one command, and with their commands.
        (
            [*swapped(EVENT, "seq", 7, 8)],
            {("event_edited", 7), ("event_edited", 8), ("command_edited", 7), ("command_edited", 8)},
        ),
        ([*swapped(EVENT, "seq", 4, 5)], {("event_edited", 4), ("event_edited", 5)}),
        (
            [*swapped(EVENT, "seq", 9, 10), *swapped(COMMAND, "first_seq", 9, 10)],
            {("chain_broken", 9), ("chain_broken", 10), ("chain_broken", 11)},
        ),
        # Numbers that no lane has, or ever will have.
        ([COMMAND.format("first_seq = 0", 9)], {("event_extra", 0), ("event_extra", 9), ("chain_broken", 10)}),
        (
            [COMMAND.format("first_seq = -9223372036854775808", 9)],
            {("event_extra", -(2**63)), ("event_extra", 9), ("chain_broken", 10)},
        ),
        (
            [COMMAND.format("first_seq = 9223372036854775807, event_count = 2147483647", 12)],
            {("event_extra", 12), ("rewritten", 9), ("stream_wrong", None)},
        ),
        (
            [EVENT.format("seq = 9223372036854775807", 12)],
            {("event_missing", 12), ("event_missing", 13), ("stream_wrong", None)},
        ),
        # What the log keeps about itself.
        (["DELETE FROM lane WHERE lane = 6"], {("lane_missing", 12)}),
        (
            ["ALTER TABLE lane DROP CONSTRAINT lane_pkey", "INSERT INTO lane (lane) VALUES (6)"],
            {("lane_repeated", 12)},
        ),
        (["UPDATE stream SET version = 1 WHERE lane = 6 AND version = 6"], {("stream_wrong", None)}),
        (
            [
                "ALTER TABLE stream DROP CONSTRAINT stream_pkey",
                "INSERT INTO stream SELECT * FROM stream WHERE lane = 6 AND version = 6",
            ],
            {("stream_wrong", None)},
        ),
    ],
)
def test_tampering_is_found_where_it_is(forger: Forger, statements: list[str], expected: set[Place]) -> None:
    forger.do(*statements)

    assert places(lane_findings(forger)) == expected


OF_EVENTS = [
    "stream_id",
    "version",
    "tenant_id",
    "type",
    "schema_version",
    "payload",
    "digest",
    "command_id",
    "recorded_at",
]
OF_COMMANDS = [
    "stream_id",
    "tenant_id",
    "name",
    "actor",
    "correlation_id",
    "event_count",
    "digest",
    "link",
    "recorded_at",
]


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [*(("event", EVENT, column) for column in OF_EVENTS), *(("command", COMMAND, column) for column in OF_COMMANDS)],
)
def test_what_lacks_something_is_found(forger: Forger, table: str, row: str, column: str) -> None:
    forger.do(f"ALTER TABLE {table} ALTER {column} DROP NOT NULL", row.format(f"{column} = NULL", 8))

    assert (f"{table}_edited", 8) in places(lane_findings(forger, replay=True))


def test_a_null_does_not_pass_for_an_empty_text(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_verification, "WINDOW_EVENTS", 1)
    forger.do("ALTER TABLE command ALTER actor DROP NOT NULL", COMMAND.format("actor = ''", 8))
    forger.redo_command(8)
    forger.redo_links()
    forger.do(COMMAND.format("actor = NULL", 8))

    assert ("command_edited", 8) in places(lane_findings(forger, sealed=False))


@pytest.mark.parametrize(
    ("count", "expected"), [("0", "command_edited"), ("NULL", "command_edited"), ("2147483647", "event_missing")]
)
def test_an_order_that_was_made_up_without_events_is_found(forger: Forger, count: str, expected: str) -> None:
    forger.do(
        "ALTER TABLE command DROP CONSTRAINT command_event_count_check, ALTER event_count DROP NOT NULL",
        "INSERT INTO command SELECT (made.row).* FROM (SELECT jsonb_populate_record(command, jsonb_build_object("
        "'command_id', gen_random_uuid(), 'first_seq', 13, 'event_count', 0)) AS row"
        " FROM command WHERE lane = 6 AND first_seq = 12) made",
    )
    forger.redo_command(13)
    forger.redo_links()
    forger.do(COMMAND.format(f"event_count = {count}", 13))

    assert (expected, 13) in places(lane_findings(forger, sealed=False))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_windows_may_end_anywhere_even_within_a_command(
    forger: Forger, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(lane_verification, "WINDOW_EVENTS", window)
    left_alone = lane_findings(forger, replay=True)

    forger.do(EVENT.format(FORGE, 7), DROP_EVENT.format(5), DROP_EVENT.format(8), DROP_EVENT.format(9))

    assert left_alone == []
    missing = {("event_missing", seq) for seq in (5, 8, 9)}
    # Where a window of its own is whole, it shows in the stream's next event, too.
    assert places(lane_findings(forger)) - {("version_gap", 11), ("version_gap", 12)} == {("event_edited", 7), *missing}


@pytest.mark.parametrize("window", [1, 3, 512])
def test_an_order_that_claims_what_another_has_is_found_wherever_a_window_ends(
    forger: Forger, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(lane_verification, "WINDOW_EVENTS", window)
    forger.do(
        "INSERT INTO command SELECT (made.row).* FROM (SELECT jsonb_populate_record(command, jsonb_build_object("
        "'command_id', gen_random_uuid(), 'first_seq', 5, 'event_count', 1)) AS row"
        " FROM command WHERE lane = 6 AND first_seq = 4) made",
    )

    kinds = ("command_overlaps", "event_edited", "command_edited", "chain_broken")
    assert places(lane_findings(forger)) == {(kind, 5) for kind in kinds}


def edit_with_digest(forger: Forger) -> None:
    forger.do(EVENT.format(FORGE, 7))
    forger.redo_event(7)


def edit_with_command(forger: Forger) -> None:
    edit_with_digest(forger)
    forger.redo_command(7)


def edit_with_link(forger: Forger) -> None:
    edit_with_command(forger)
    forger.redo_links(first=7, last=7)


def rewrite_all(forger: Forger) -> None:
    edit_with_command(forger)
    forger.redo_links()


def rewrite_the_end(forger: Forger) -> None:
    forger.do(COMMAND.format("actor = 'customer:eve'", 10))
    forger.redo_command(10)
    forger.redo_links()


def renumber(forger: Forger) -> None:
    """A removed event, with all later ones moved up and made to fit: the lane is whole, only shorter."""
    forger.do(
        *(DROP_EVENT.format(10), DROP_COMMAND.format(10)),
        *(EVENT.format(f"seq = {seq - 1}", seq) for seq in (11, 12)),
        *(COMMAND.format(f"first_seq = {seq - 1}", seq) for seq in (11, 12)),
        "UPDATE stream SET version = version - 1 WHERE lane = 6 AND version = 6",
    )
    forger.redo_links()


def leave_a_gap(forger: Forger) -> None:
    forger.do(
        EVENT.format("version = 4", 12),
        "UPDATE stream s SET version = 4 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 12",
    )
    forger.redo_event(12)
    forger.redo_command(12)
    forger.redo_links()


def hand_to_another_stream(forger: Forger) -> None:
    """The last event, whose command says otherwise."""
    forger.do(
        "UPDATE stream s SET version = 2 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 12",
        "UPDATE stream s SET version = 4 FROM event e WHERE s.stream_id = e.stream_id AND e.lane = 6 AND e.seq = 11",
        EVENT.format("version = 4, stream_id = (SELECT stream_id FROM event WHERE lane = 6 AND seq = 11)", 12),
    )
    forger.redo_event(12)
    forger.redo_command(12)
    forger.redo_links()


def begin_later(forger: Forger) -> None:
    """A command, of as many events."""
    forger.do(COMMAND.format("first_seq = 5", 4))
    forger.redo_links()


def cut_off(forger: Forger) -> None:
    """The last two events, without a trace in the log itself."""
    forger.do(
        "DELETE FROM event WHERE lane = 6 AND seq > 10",
        "DELETE FROM command WHERE lane = 6 AND first_seq > 10",
        "UPDATE stream s SET version = e.version"
        "  FROM (SELECT stream_id, max(version) AS version FROM event WHERE lane = 6 GROUP BY stream_id) e"
        " WHERE s.lane = 6 AND s.stream_id = e.stream_id",
    )


def empty_the_lane(forger: Forger) -> None:
    forger.do(
        "DELETE FROM event WHERE lane = 6",
        "DELETE FROM command WHERE lane = 6",
        "DELETE FROM stream WHERE lane = 6",
    )


@pytest.mark.parametrize(
    ("forge", "expected", "without_seals"),
    [
        (edit_with_digest, {("command_edited", 7)}, {("command_edited", 7)}),
        (edit_with_command, {("chain_broken", 7)}, {("chain_broken", 7)}),
        (edit_with_link, {("chain_broken", 8)}, {("chain_broken", 8)}),
        (rewrite_all, {("rewritten", 1)}, set[Place]()),
        (rewrite_the_end, {("rewritten", 9)}, set[Place]()),
        (renumber, {("tail_missing", 12)}, set[Place]()),
        (leave_a_gap, {("rewritten", 9), *GAP}, GAP),
        (hand_to_another_stream, {("rewritten", 9), ("event_edited", 12)}, {("event_edited", 12)}),
        (begin_later, {("rewritten", 1), *LATER}, LATER),
        (cut_off, {("tail_missing", 11)}, set[Place]()),
        (empty_the_lane, {("tail_missing", 1)}, set[Place]()),
    ],
)
def test_making_digests_and_links_fit_again_helps_against_anything_but_seals(
    forger: Forger, forge: Callable[[Forger], None], expected: set[Place], without_seals: set[Place]
) -> None:
    forge(forger)

    assert places(lane_findings(forger)) == expected
    assert places(lane_findings(forger, sealed=False)) == without_seals


def test_a_stream_in_a_lane_that_is_not_its_own_is_found_there(forger: Forger) -> None:
    forger.do(
        "UPDATE event SET stream_id = command_id WHERE lane = 6 AND seq = 2",
        "UPDATE command SET stream_id = command_id WHERE lane = 6 AND first_seq = 2",
    )
    forger.redo_event(2)
    forger.redo_command(2)
    forger.redo_links()

    found = places(lane_findings(forger, replay=True))

    assert ("wrong_lane", 2) in found


@pytest.mark.parametrize(
    "edit",
    [
        """payload = '{"type":"agent_key_acknowledged","at_ms":1}'""",
        # No release writes these, and no newer one will.
        """payload = '{"type":"name_chosen","at_ms":1}'""",
        "schema_version = 0",
        "schema_version = 0, type = 'name_chosen'",
    ],
)
def test_a_history_that_makes_no_sense_is_said_to_make_none(forger: Forger, edit: str) -> None:
    forger.do(EVENT.format(edit, 7))
    forger.redo_event(7)

    found = {finding.kind for finding in lane_findings(forger, replay=True)}

    assert found == {"command_edited", "history_broken"}
