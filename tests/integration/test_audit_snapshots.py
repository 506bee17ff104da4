"""Snapshots are compared with the log: from a forged one, processes would continue with a state that never was."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from events import snapshots as kept
from events.pacing import Pace
from events.seal import Seal
from events.verification_findings import Finding, note_sentences
from hydracore.audit import snapshots
from hydracore.audit.seal_check import stored_seals
from hydracore.audit.verifying import Request, verify
from hydracore.audit.verifying_lanes import Job, verify_lanes
from tests.sealed_log import LANE, Forger, sealed_log, update_projections
from tests.services import Services
from tests.tampering import CountedProgress, forger, lane_findings, lane_report, module_database

__all__ = ["forger"]


@pytest.fixture(scope="module")
def url(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A log with a snapshot of each of its instances."""

    async def make(url: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept, "EVENTS_PER_SNAPSHOT", 2)
            async with sealed_log(url, tmp_path_factory.mktemp("seals")) as log:
                await update_projections(log)

    with module_database(services, "snapshots", make) as url:
        yield url


def first_of(forger: Forger) -> str:
    """The id of the instance with the most events."""
    query = "SELECT stream_id::text FROM snapshot WHERE lane = %s ORDER BY version DESC LIMIT 1"
    ((stream_id,),) = forger.connection.execute(query, (LANE,)).fetchall()
    return stream_id


def found(forger: Forger) -> list[Finding]:
    return lane_findings(forger, replay=True)


def test_unchanged_snapshots_have_no_findings(forger: Forger, monkeypatch: pytest.MonkeyPatch) -> None:
    ((count,),) = forger.connection.execute("SELECT count(*) FROM snapshot").fetchall()
    assert count == 3
    report = lane_report(forger, replay=True)
    assert (report.findings, report.notes) == ([], set())

    monkeypatch.setattr(snapshots, "PAGE", 1)

    assert found(forger) == [], "this does not depend on how much is read at a time"


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (
            "UPDATE snapshot SET state = replace(state::text, '\"second\"', '\"third\"')::json WHERE version = 6",
            "The snapshot differs from a replay of the log in agent_name",
        ),
        (
            "UPDATE snapshot SET state = replace(replace(state::text, 'starter', 'huge'), 'local', 'far')::json WHERE version = 6",
            "The snapshot differs from a replay of the log in region_id, tier_id",
        ),
        (
            "UPDATE snapshot SET state = (state::text || ' ')::json WHERE version = 6",
            "The snapshot is not encoded as a replay of the log encodes it",
        ),
        ("UPDATE snapshot SET state = '{}' WHERE version = 6", "The snapshot cannot be read"),
        (
            "UPDATE snapshot SET digest = sha256('another event') WHERE version = 6",
            "The snapshot was made from a different event than the log has at version 6",
        ),
        (
            "UPDATE snapshot SET version = 3 WHERE version = 6",
            "The snapshot was made from a different event than the log has at version 3",
        ),
        (
            "UPDATE snapshot SET version = 99 WHERE version = 6",
            "The snapshot has version 99, but the stream ends with 6",
        ),
    ],
)
def test_an_edited_snapshot_is_found_with_its_place(forger: Forger, statement: str, what: str) -> None:
    stream_id = first_of(forger)
    forger.do(statement)

    (finding,) = found(forger)

    assert (finding.kind, finding.lane, str(finding.stream_id)) == ("row_differs", LANE, stream_id)
    assert (finding.table, finding.what) == ("snapshot", what)


@pytest.mark.parametrize(
    ("column", "value"), [("version", "NULL"), ("version", "0"), ("digest", "NULL"), ("state", "NULL")]
)
def test_a_snapshot_that_lacks_a_required_field_is_found(forger: Forger, column: str, value: str) -> None:
    forger.do(
        f"ALTER TABLE snapshot DROP CONSTRAINT snapshot_version_check, ALTER {column} DROP NOT NULL",
        f"UPDATE snapshot SET {column} = {value} WHERE version = 6",  # noqa: S608 - of the list above
    )

    (finding,) = found(forger)

    assert finding.what == "The snapshot lacks required fields"


def test_without_a_replay_snapshots_are_not_compared(forger: Forger) -> None:
    forger.do("UPDATE snapshot SET state = '{}'")

    assert lane_findings(forger, replay=False) == []


def test_a_snapshot_of_an_unknown_stream_is_found(forger: Forger) -> None:
    forger.do(
        "INSERT INTO snapshot SELECT lane, gen_random_uuid(), version, fold, digest, state FROM snapshot WHERE version = 6"
    )

    (finding,) = found(forger)

    assert finding.what.endswith("but the stream ends with 0")


def test_snapshots_of_older_rules_are_ignored_and_those_of_newer_rules_are_noted(forger: Forger) -> None:
    forger.do("UPDATE snapshot SET fold = fold - 1, state = '{}'")
    assert found(forger) == []

    forger.do("UPDATE snapshot SET fold = fold + 2")

    report = lane_report(forger, replay=True)
    assert report.findings == []
    assert note_sentences(report.notes) == [
        f"Snapshots by a newer HydraCore with different rules were not compared: lane {LANE} (3)"
    ]


def test_a_broken_history_is_not_also_a_finding_about_its_snapshot(forger: Forger) -> None:
    forger.do("UPDATE event SET type = 'nonsense' WHERE version = 2")

    tables = [finding.table for finding in found(forger) if finding.kind != "event_edited"]

    assert "snapshot" not in tables


def test_since_a_seal_only_snapshots_of_changed_streams_are_compared(forger: Forger) -> None:
    forger.do("UPDATE snapshot SET state = '{}'")
    first, last = stored_seals(forger.connection)

    def edited(seal: Seal) -> int:
        job = Job(lane=LANE, start=seal.head(LANE))
        (report,) = verify_lanes(forger.connection, [job], Pace(full_speed=True), lambda _: None)
        return sum(finding.table == "snapshot" for finding in report.findings)

    assert (edited(first), edited(last)) == (3, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_total_of_the_progress_includes_the_snapshots(url: str, workers: int) -> None:
    counted = CountedProgress()

    report = verify(Request(conninfo=url, workers=workers), counted)

    # Twice all events, and once more those that give the snapshots.
    assert (report.findings, report.events) == ([], 12)
    assert (counted.total, counted.done) == (2 * 12 + 6 + 2 + 2,) * 2


async def test_since_a_seal_the_total_of_the_progress_includes_snapshots_of_changed_streams(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "EVENTS_PER_SNAPSHOT", 2)
    counted = CountedProgress()

    async with sealed_log(database_url, tmp_path) as log:
        await log.rename(1, "third")
        report = await asyncio.to_thread(verify, Request(conninfo=log.url, since_seal=True), counted)

    assert (report.findings, report.events) == ([], 1)
    assert (counted.total, counted.done) == (2 * 1 + 4,) * 2


def test_the_progress_reaches_its_total_even_if_snapshots_are_invalid(forger: Forger) -> None:
    forger.do(
        "UPDATE snapshot SET version = 99 WHERE version = 6", "UPDATE snapshot SET state = '{}' WHERE version = 2"
    )
    lanes = snapshots.events_to_fold(forger.connection, {LANE: 0})
    told = list[int]()
    job = Job(lane=LANE, upto=12, snapshot_events=lanes[LANE])

    verify_lanes(forger.connection, [job], Pace(full_speed=True), told.append)

    assert sum(told) == job.work
