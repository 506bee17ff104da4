"""Every kind of tampering with a log is found, with its place."""

from __future__ import annotations

import pytest

from events import lane_verification
from events.ids import LANES
from events.lane_verification import LaneReport
from events.pacing import Pace
from hydracore.audit import verifying_lanes
from hydracore.audit.verifying_lanes import Job, verify_lanes
from tests.sealed_log import LANE, Forger
from tests.tampering import (
    COMMAND,
    DROP_COMMAND,
    DROP_EVENT,
    EVENT,
    FORGE,
    Place,
    forger,
    lane_findings,
    places,
    sealed_url_fixture,
)

__all__ = ["forger", "sealed_url_fixture"]

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


def test_an_untampered_log_has_no_findings(forger: Forger) -> None:
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
        # The other columns of an event.
        ([EVENT.format("type = 'instance_deleted'", 7)], {("event_edited", 7)}),
        ([EVENT.format("schema_version = 2", 5)], {("event_edited", 5)}),
        ([EVENT.format("version = 90", 8)], {("event_edited", 8)}),
        ([EVENT.format("version = -1", 8)], {("event_edited", 8)}),
        ([EVENT.format("tenant_id = 'other'", 5)], {("event_edited", 5)}),
        ([EVENT.format("recorded_at = recorded_at - interval '1 us'", 9)], {("event_edited", 9)}),
        ([EVENT.format("recorded_at = '-infinity'", 9)], {("event_edited", 9)}),
        ([EVENT.format("command_id = gen_random_uuid()", 1)], {("event_edited", 1)}),
        ([EVENT.format("digest = sha256('x')", 12)], {("event_edited", 12), ("command_edited", 12)}),
        # The columns of a command: who did it, and why.
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
        # Events or commands removed.
        ([DROP_EVENT.format(5)], {("event_missing", 5)}),
        ([DROP_EVENT.format(12)], {("event_missing", 12), ("tail_missing", 12), ("stream_wrong", None)}),
        ([DROP_EVENT.format(9), DROP_COMMAND.format(9)], {("event_missing", 9), ("chain_broken", 10)}),
        ([DROP_COMMAND.format(7)], {("event_extra", 7), ("chain_broken", 8)}),
        # Events added.
        ([DROP_EVENT.format(12), DROP_COMMAND.format(12)], {("tail_missing", 12), ("stream_wrong", None)}),
        ([INSERT_EVENT.format(13)], {("event_extra", 13)}),
        ([INSERT_EVENT.format(0)], {("event_extra", 0)}),
        ([*REPEAT_EVENT], {("event_extra", 5)}),
        (
            [*REPEAT_EVENT, EVENT.format("version = 90", "5 AND ctid > (SELECT min(ctid) FROM event WHERE seq = 5)")],
            {("event_extra", 5)},
        ),
        # Two events that changed places: of two commands, of one command, and with their commands.
        (
            [*swapped(EVENT, "seq", 7, 8)],
            {("event_edited", 7), ("event_edited", 8), ("command_edited", 7), ("command_edited", 8)},
        ),
        ([*swapped(EVENT, "seq", 4, 5)], {("event_edited", 4), ("event_edited", 5)}),
        (
            [*swapped(EVENT, "seq", 9, 10), *swapped(COMMAND, "first_seq", 9, 10)],
            {("chain_broken", 9), ("chain_broken", 10), ("chain_broken", 11)},
        ),
        # Sequence numbers that no lane has or ever will have.
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
        # The heads of lanes and the versions of streams.
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
def test_tampering_is_reported_with_its_place(forger: Forger, statements: list[str], expected: set[Place]) -> None:
    forger.do(*statements)

    assert places(lane_findings(forger)) == expected


EVENT_COLUMNS = [
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
COMMAND_COLUMNS = [
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
    [
        *(("event", EVENT, column) for column in EVENT_COLUMNS),
        *(("command", COMMAND, column) for column in COMMAND_COLUMNS),
    ],
)
def test_a_null_in_any_column_of_an_event_or_command_is_found(
    forger: Forger, table: str, row: str, column: str
) -> None:
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
def test_a_forged_command_without_events_is_found(forger: Forger, count: str, expected: str) -> None:
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


def test_every_lane_is_verified_however_few_streams_fit_into_a_snapshot(
    forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    forger.do(EVENT.format(FORGE, 7))
    jobs = [Job(lane=lane, replay=False) for lane in range(LANES)]

    def checked() -> list[LaneReport]:
        return verify_lanes(forger.connection, jobs, Pace(full_speed=True), lambda _: None)

    together = checked()
    monkeypatch.setattr(verifying_lanes, "STREAMS_PER_SNAPSHOT", 0)

    assert checked() == together
    assert [report.lane for report in together] == [*range(LANES)]
    assert {report.lane for report in together if report.findings} == {LANE}


@pytest.mark.parametrize("window", [1, 2, 5])
def test_findings_do_not_depend_on_where_a_window_ends_even_within_a_command(
    forger: Forger, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(lane_verification, "WINDOW_EVENTS", window)
    untampered = lane_findings(forger, replay=True)

    forger.do(EVENT.format(FORGE, 7), DROP_EVENT.format(5), DROP_EVENT.format(8), DROP_EVENT.format(9))

    assert untampered == []
    missing = {("event_missing", seq) for seq in (5, 8, 9)}
    # Depending on where windows end, a missing event also shows as a gap at its stream's next event.
    assert places(lane_findings(forger)) - {("version_gap", 11), ("version_gap", 12)} == {("event_edited", 7), *missing}


@pytest.mark.parametrize("window", [1, 3, 512])
def test_a_command_that_claims_events_of_another_is_found_wherever_a_window_ends(
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


def test_a_stream_in_a_wrong_lane_is_found(forger: Forger) -> None:
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
def test_events_that_make_no_valid_history_are_reported_as_a_broken_history(forger: Forger, edit: str) -> None:
    forger.do(EVENT.format(edit, 7))
    forger.redo_event(7)

    found = {finding.kind for finding in lane_findings(forger, replay=True)}

    assert found == {"command_edited", "history_broken"}


def test_a_command_moved_within_its_events_is_found_even_if_the_links_were_recomputed(forger: Forger) -> None:
    moved = "UPDATE command SET first_seq = first_seq + 1 WHERE lane = 6 AND event_count > 1 RETURNING first_seq"
    ((seq,), *_) = forger.connection.execute(moved).fetchall()
    forger.redo_links()

    assert ("event_extra", seq - 1) in places(lane_findings(forger, sealed=False))


def test_an_event_given_to_another_stream_than_its_command_is_found_even_if_all_digests_were_recomputed(
    forger: Forger,
) -> None:
    last = "SELECT first_seq, first_seq + event_count - 1 FROM command WHERE lane = 6 ORDER BY first_seq DESC LIMIT 1"
    ((first, seq),) = forger.connection.execute(last).fetchall()
    # The first event of a stream of this lane.
    forger.do(EVENT.format("stream_id = '00000000-0000-4000-8000-000000000006', version = 1", seq))
    forger.redo_event(seq)
    forger.redo_command(first)
    forger.redo_links()

    assert ("event_edited", seq) in places(lane_findings(forger, sealed=False))
