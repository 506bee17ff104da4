"""Tampering with read tables is found: each row must be what the log gives."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest
from msgspec.structs import replace

from events.ids import SEQ_MAX
from events.verification_findings import Note, note_sentences
from hydracore.audit import followed_tables, inline_tables
from hydracore.audit.served_projections import find_served_projections
from tests import lifecycle
from tests.sealed_log import LANE, Forger, sealed_log, update_projections
from tests.services import Services
from tests.store_commands import origin
from tests.tampering import forger, lane_findings, lane_report, module_database

__all__ = ["forger"]

SKIP_ALL = (
    "INSERT INTO projection_intervention (name, version, lane, seq, action, error, actor, reason)"
    " SELECT p.name, p.version, 6, n, 'skip', '', '', '' FROM projection p, generate_series(-1, 99) n WHERE p.name = 'activity'"
)
SET_VERSION = "UPDATE {} SET version = {} WHERE name = '{}'"
INSERT_LINE = (
    "INSERT INTO provision_log (lane, instance_id, seq, level, message, created_at)"
    " SELECT lane, id, 99, 'info', 'All is well', now() FROM instance"
)


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    async def make(url: str) -> None:
        async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
            usage = lifecycle.usage(1)
            (entry,) = usage.entries
            usage = replace(usage, entries=(replace(entry, end_user="somebody"),))
            await log.store.execute(log.ids[0], usage, origin("agent"))
            await update_projections(log)

    with module_database(services, "read_tables", make) as url:
        yield url


def test_unchanged_read_tables_have_no_findings(forger: Forger) -> None:
    report = lane_report(forger, replay=True)

    assert (report.findings, report.notes) == ([], set())


@pytest.mark.parametrize(
    ("statement", "kind", "table", "what"),
    [
        (
            "UPDATE instance SET status = 'running' WHERE status = 'pending'",
            *("row_differs", "instance", "status is 'running' but must be 'pending'"),
        ),
        ("UPDATE instance SET wake_at = NULL", "row_differs", "instance", "wake_at is None but must be 2026-"),
        ("DELETE FROM instance WHERE status = 'pending'", "row_missing", "instance", "is missing"),
        (
            "UPDATE provision_log SET message = 'All is well' WHERE seq = 2",
            *("row_differs", "provision_log", "message is 'All is well' but must be"),
        ),
        ("DELETE FROM provision_log WHERE seq = 1", "row_missing", "provision_log", "is missing"),
        (
            INSERT_LINE,
            *("row_extra", "provision_log", "The log does not have the row"),
        ),
        (
            "UPDATE reservation SET released_at = now() WHERE kind = 'vpn_ip'",
            *("row_differs", "reservation", "released_at is"),
        ),
        ("DELETE FROM reservation WHERE kind = 'hostname'", "row_missing", "reservation", "hc-ada"),
        # Times out of range, and a value that only Python takes for the same.
        ("UPDATE instance SET wake_at = 'infinity'", "row_differs", "instance", "wake_at is 'a time out of range'"),
        (
            "UPDATE reservation SET released_at = '-infinity' WHERE kind = 'hostname'",
            *("row_differs", "reservation", "released_at is 'a time out of range'"),
        ),
        (
            """UPDATE instance SET capabilities = '{"chat":1}' WHERE status = 'provisioning'""",
            *("row_differs", "instance", "capabilities is"),
        ),
    ],
)
def test_an_edited_row_of_an_inline_table_is_found(
    forger: Forger, statement: str, kind: str, table: str, what: str
) -> None:
    forger.do(statement)

    found = lane_findings(forger, replay=True)

    assert {(finding.kind, finding.table, finding.lane) for finding in found} == {(kind, table, LANE)}
    assert all(what in finding.what and finding.stream_id is not None for finding in found)


@pytest.mark.parametrize("table", ["instance", "provision_log"])
def test_a_row_in_another_lane_than_its_instance_is_found(forger: Forger, table: str) -> None:
    """A reader that goes by the tenant in the table could find another tenant's instance by it."""
    copy = "INSERT INTO {0} SELECT (json_populate_record(t, '{{\"lane\":7}}')).* FROM {0} t WHERE lane = 6 LIMIT 1"
    forger.do(copy.format(table))

    (found,) = inline_tables.orphan_rows(forger.connection, find_served_projections(forger.connection).inline)

    assert (found.kind, found.table) == ("row_extra", table)


def test_a_duplicated_row_is_found(forger: Forger) -> None:
    forger.do(
        "ALTER TABLE provision_log DROP CONSTRAINT provision_log_pkey",
        "INSERT INTO provision_log SELECT * FROM provision_log WHERE lane = 6 AND seq = 2",
    )

    (found,) = lane_findings(forger, replay=True)

    assert (found.kind, found.table, found.lane) == ("row_extra", "provision_log", LANE)


@pytest.mark.parametrize(
    ("statement", "kind", "table", "what"),
    [
        ("UPDATE usage_daily SET cost_usd = cost_usd + 99", "row_differs", "usage_daily", "cost_usd is"),
        ("UPDATE usage_daily SET day = 'infinity'", "row_extra", "usage_daily", "a time out of range"),
        ("UPDATE usage_end_user SET end_user = 'x'", "row_missing", "usage_end_user", "is missing"),
        ("UPDATE fleet SET exits = 0 WHERE lane = 6 AND exits > 0", "row_differs", "fleet", "exits is 0"),
        ("DELETE FROM fleet_member WHERE lane = 6", "row_missing", "fleet_member", "is missing"),
        ("UPDATE activity SET first_at = '-infinity' WHERE lane = 6", "row_differs", "activity", "first_at is"),
        (
            "UPDATE checkpoint SET seq = 99 WHERE follower = 'activity' AND lane = 6",
            *("checkpoint_wrong", None, "activity claims to have applied events up to 99"),
        ),
    ],
)
def test_an_edited_followed_table_or_checkpoint_is_found(
    forger: Forger, statement: str, kind: str, table: str | None, what: str
) -> None:
    forger.do(statement)

    found = lane_findings(forger, replay=True)

    assert (kind, table, LANE) in {(finding.kind, finding.table, finding.lane) for finding in found}
    assert any(what in finding.what for finding in found)


def test_a_finding_about_a_very_long_row_is_short(forger: Forger) -> None:
    forger.do(
        "INSERT INTO usage_end_user SELECT 6, gen_random_uuid(), '2026-11-01',"
        " string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 60)"
    )

    (found,) = lane_findings(forger, replay=True)

    assert (found.kind, found.table) == ("row_extra", "usage_end_user")
    assert len(found.what) < 250


@pytest.mark.parametrize("table", ["activity", "fleet", "fleet_member", "usage_daily", "usage_end_user"])
def test_rows_of_a_nonexistent_lane_are_found_in_followed_tables(forger: Forger, table: str) -> None:
    """Readers add up the rows of all lanes, whether or not such a lane exists."""
    copy = "INSERT INTO {0} SELECT (json_populate_record(t, '{{\"lane\":99}}')).* FROM {0} t LIMIT 1"
    forger.do(copy.format(table))

    (found,) = followed_tables.orphan_rows(forger.connection, find_served_projections(forger.connection).followed)

    assert (found.kind, found.table, found.lane) == ("row_extra", table, 99)


def test_missing_rows_of_events_not_yet_followed_are_a_note_and_no_finding(forger: Forger) -> None:
    forger.do(
        "DELETE FROM activity",
        "DELETE FROM fleet",
        "DELETE FROM fleet_member",
        "DELETE FROM checkpoint WHERE follower IN ('activity', 'fleet')",
    )

    report = lane_report(forger, replay=True)

    assert report.findings == []
    assert note_sentences(report.notes) == [
        f"{name} has not applied all of the log; later events were not compared: lane 6 (to 0 of 13)"
        for name in ("activity", "fleet")
    ]


@pytest.mark.parametrize(
    ("statement", "note"),
    [
        (
            "UPDATE checkpoint SET seq = 0, parked_until = 'infinity' WHERE follower = 'activity' AND lane = 6",
            "activity has not applied all of the log; later events were not compared: lane 6 (to 0 of 13, parked)",
        ),
        (
            SKIP_ALL,
            "activity skips events on an operator's order, and was compared without them: lane 6 (13 events: 1, 2, 3, 4, 5, ...)",
        ),
    ],
    ids=["parked", "skipped"],
)
def test_rows_missing_behind_a_parked_lane_or_skipped_events_are_noted(
    forger: Forger, statement: str, note: str
) -> None:
    forger.do("DELETE FROM activity", statement)

    report = lane_report(forger, replay=True)

    assert (report.findings, note_sentences(report.notes)) == ([], [note])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            "UPDATE event SET schema_version = 99 WHERE lane = 6 AND type = 'usage_recorded'",
            "Version 99 of event usage_recorded was written by a newer HydraCore",
        ),
        (
            """UPDATE event SET payload = '{"type":"usage_recorded"}' WHERE lane = 6 AND type = 'usage_recorded'""",
            "cannot be applied to usage_daily: ValidationError",
        ),
    ],
    ids=["newer", "malformed"],
)
def test_an_unreadable_event_does_not_stop_comparing_projections_that_do_not_read_it(
    forger: Forger, damage: str, told: str
) -> None:
    forger.do(
        damage,
        "UPDATE activity SET events = events + 1 WHERE lane = 6 AND command = 'RequestInstance'",
        "UPDATE fleet SET exits = exits + 1 WHERE lane = 6",
        "DELETE FROM usage_daily",
    )
    forger.redo_event(13)
    forger.redo_command(13)
    forger.redo_links()

    report = lane_report(forger, replay=True, sealed=False)

    tables = {finding.table for finding in report.findings if finding.kind == "row_differs"}
    assert tables == {"activity", "fleet"}
    said = [*(finding.what for finding in report.findings), *note_sentences(report.notes)]
    assert len([what for what in said if told in what]) == 1
    assert "usage_daily" not in {finding.table for finding in report.findings}


def test_a_projection_parked_at_an_unreadable_event_is_compared_up_to_that_event(forger: Forger) -> None:
    forger.do(
        "UPDATE event SET schema_version = 99 WHERE lane = 6 AND type = 'usage_recorded'",
        "UPDATE checkpoint SET seq = 12, error = 'EventUnreadable' WHERE follower = 'usage_daily' AND lane = 6",
    )
    forger.redo_event(13)
    forger.redo_command(13)
    forger.redo_links()

    found = lane_findings(forger, replay=True, sealed=False)

    assert ("row_extra", "usage_daily") in {(finding.kind, finding.table) for finding in found}


def test_a_projection_that_was_never_built_is_a_note_and_no_finding(forger: Forger) -> None:
    forger.do("DROP TABLE activity", "DELETE FROM projection WHERE name = 'activity'")

    found = find_served_projections(forger.connection)

    assert (found.findings, found.notes) == ([], [Note("activity was never built here: not compared")])


@pytest.mark.parametrize(
    ("forgeries", "what"),
    [
        (
            [("projection", 2, "fleet")],
            "version 2, but projection_generation has no such live generation: not compared",
        ),
        (
            [("projection", 0, "activity")],
            "version 0, but projection_generation has no such live generation: not compared",
        ),
        ([("projection_generation", 2, "fleet")], "version 1, but projection_generation has no such live generation"),
        (
            [("projection", 99, "instance"), ("projection_generation", 99, "instance")],
            "version 99, which this release does not have and which was never built: not compared",
        ),
        (
            [("projection", 0, "activity"), ("projection_generation", 0, "activity")],
            "version 0, but the first version is 1: not compared",
        ),
    ],
)
def test_an_invented_projection_version_is_found(
    forger: Forger, forgeries: list[tuple[str, int, str]], what: str
) -> None:
    for forgery in forgeries:
        forger.do(SET_VERSION.format(*forgery))

    (found,) = find_served_projections(forger.connection).findings

    assert (found.kind, found.table) == ("projection_wrong", "projection")
    assert found.what == f"The table projection says that {forgeries[0][2]} is served in {what}"


@pytest.mark.parametrize(
    ("forgery", "kind"),
    [
        ("DROP TABLE fleet_member", "table_missing"),
        ("ALTER TABLE fleet DROP COLUMN exits", "column_missing"),
        ("ALTER TABLE fleet ALTER COLUMN lane TYPE text", "column_missing"),
        ("ALTER TABLE usage_daily ALTER COLUMN instance_id TYPE text", "column_missing"),
        ("ALTER TABLE reservation ALTER COLUMN instance_id TYPE text", "column_missing"),
    ],
)
def test_a_damaged_table_is_found_and_the_other_tables_are_still_compared(
    forger: Forger, forgery: str, kind: str
) -> None:
    forger.do(forgery, "DELETE FROM activity", "DELETE FROM provision_log")

    (found,) = find_served_projections(forger.connection).findings
    others = {finding.table for finding in lane_findings(forger, replay=True)}

    assert (found.kind, others) == (kind, {"activity", "provision_log"})


def test_a_lost_connection_is_an_error_and_no_finding(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_tables, "EVENTS_MAX", 1)
    with psycopg.connect(url, autocommit=True) as killer, psycopg.connect(url, autocommit=True) as connection:
        followed = find_served_projections(connection).followed

        def kill(_events: int) -> None:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))

        with pytest.raises(psycopg.OperationalError):
            list(followed_tables.compare(connection, LANE, followed, due=SEQ_MAX, after_each=kill))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET version = -2147483648 WHERE lane = 6 AND seq = 8",
        "UPDATE instance SET wake_at = 'infinity'",
        "UPDATE command SET first_seq = 9223372036854775807 WHERE lane = 6 AND first_seq = 12",
        "DELETE FROM lane WHERE lane <> 6",
    ],
)
def test_an_impossible_value_hides_no_other_finding(forger: Forger, statement: str) -> None:
    forger.do("UPDATE event SET payload = '{}' WHERE lane = 6 AND seq = 7", statement)

    assert ("event_edited", 7) in {(finding.kind, finding.seq) for finding in lane_findings(forger, replay=True)}
