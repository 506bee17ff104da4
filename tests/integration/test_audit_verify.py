"""`audit verify` as its users see it: exit status and output, on a log in use, and with events of other releases."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from events import upcast
from hydracore.audit.verifying import Progress, Request, verify
from tests.sealed_log import Forger, Log, run_audit, sealed_log, update_projections
from tests.store_commands import create_instance
from tests.verify_fixtures import FORGE, forger, log, verify_findings
from tests.waiting import BETWEEN_WRITES_S, until

__all__ = ["forger", "log"]

UPGRADING = Path(__file__).parents[2] / "docs/upgrading.md"

WAITING = b"""
SELECT count(*) > 0
  FROM pg_locks
 WHERE NOT granted AND relation = 'event'::regclass
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def test_an_untampered_log_passes_with_every_option(log: Log) -> None:
    await update_projections(log)
    tables: dict[tuple[str, ...], int] = {("--no-replay",): 0, ("--since-seal",): 3}
    for words in ((), ("--no-replay",), ("--since-seal",), ("--lane", "6"), ("--workers", "2")):
        result = run_audit(log, "verify", "--json", "--seals", str(log.file.path), *words)

        report = json.loads(result.stdout)
        assert (result.exit_code, report["ok"], report["findings"], report["seals"]) == (0, True, [], 2)
        assert report["events"] == (0 if words == ("--since-seal",) else 12)
        assert len(report["tables"]) == tables.get(words, 8)
        # A note says what was not compared.
        assert [note for note in report["notes"] if "activity" not in note] == []
        assert bool(report["notes"]) == (words == ("--since-seal",))


@pytest.mark.parametrize(
    ("statements", "kind"),
    [
        (["UPDATE seal SET sealed_at = 'infinity' WHERE number = 2"], "seal_flawed"),
        (["UPDATE seal SET heads[3] = NULL WHERE number = 1"], "seal_flawed"),
        (["UPDATE seal SET heads = (SELECT array_agg(ARRAY[head]) FROM unnest(heads) head)"], "seal_flawed"),
        (
            ["ALTER TABLE seal ALTER root DROP NOT NULL", "UPDATE seal SET root = NULL WHERE number = 2"],
            "seal_flawed",
        ),
        (
            [
                "ALTER TABLE command DROP CONSTRAINT command_event_count_check, ALTER event_count DROP NOT NULL",
                "UPDATE command SET event_count = NULL WHERE lane = 6 AND first_seq = 12",
            ],
            "command_edited",
        ),
        (
            [
                "ALTER TABLE stream DROP CONSTRAINT stream_pkey, ALTER stream_id DROP NOT NULL",
                "UPDATE stream SET stream_id = NULL WHERE lane = 6 AND version = 6",
            ],
            "stream_wrong",
        ),
        (
            [
                "ALTER TABLE stream ALTER version DROP NOT NULL",
                "UPDATE stream SET version = NULL WHERE lane = 6 AND version = 6",
            ],
            "stream_wrong",
        ),
    ],
)
async def test_a_malformed_row_is_found_and_hides_no_other_finding(
    log: Log, forger: Forger, statements: list[str], kind: str
) -> None:
    forger.do(FORGE.format(7), *statements)

    status, findings = verify_findings(log)

    assert status == 1
    assert {kind, "event_edited"} <= {finding["kind"] for finding in findings}


async def test_each_finding_is_one_line_with_its_place_and_the_exit_status_is_1(log: Log, forger: Forger) -> None:
    await update_projections(log)
    forger.do(FORGE.format(7), "UPDATE instance SET status = 'running' WHERE agent_name = 'second' AND attempt = 1")

    result = run_audit(log, "verify", "--seals", str(log.file.path))

    assert result.exit_code == 1
    edited, row, total = result.stdout.splitlines()
    assert edited.startswith(f"lane 6, 7, stream {log.ids[0]}: event_edited: ")
    assert row.startswith(f"lane 6, stream {log.ids[0]}, table instance: row_differs: ")
    assert total.startswith("2 findings in 12 events and 10 commands of 3 streams in 64 lanes, 2 seals, 8 read tables")


#: The tables that a verification read before those that `docs/upgrading.md` names were added.
READ_BEFORE = (
    "activity, checkpoint, command, event, fleet, fleet_member, instance, projection, projection_generation, projection_lane,"
    " provision_log, reservation, seal, stream, usage_daily, usage_end_user"
)


def test_a_separate_auditor_role_needs_only_the_grants_that_upgrading_md_names(log: Log, forger: Forger) -> None:
    (granted,) = re.findall(r"`(GRANT SELECT ON [a-z_, ]+ TO) \.\.\.`", UPGRADING.read_text())
    role = f"auditor_{uuid4().hex}"
    forger.do(f"CREATE ROLE {role}", f"GRANT SELECT ON {READ_BEFORE} TO {role}", f"{granted} {role}")
    try:
        result = run_audit(log, "verify", "--seals", str(log.file.path), HYDRACORE_DATABASE_ROLE=role)
    finally:
        forger.do(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    assert (result.exit_code, result.stderr) == (0, "")


async def test_a_verification_that_cannot_run_is_not_reported_as_a_finding(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM seal")

    no_seal = run_audit(log, "verify", "--since-seal")
    no_database = run_audit(log, "verify", HYDRACORE_DATABASE_URL="postgresql://owner:password@127.0.0.1:1/db")

    assert (no_seal.exit_code, "There is no seal yet" in no_seal.stderr) == (2, True)
    assert (no_database.exit_code, len(no_database.stderr.splitlines())) == (3, 1)
    assert "password" not in no_database.stderr


@pytest.mark.parametrize(
    "words", ["audit verify", "audit verify --workers 2", "projections rebuild instance --workers 2"]
)
async def test_ctrl_c_ends_a_long_command_with_one_line_and_exit_status_130(
    log: Log, forger: Forger, words: str
) -> None:
    # A lock keeps the command from ending before it is interrupted.
    with forger.connection.transaction():
        forger.do("LOCK TABLE event IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hydracore", *words.split()),
            env=os.environ | {"HYDRACORE_DATABASE_URL": log.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        await until(lambda: forger.connection.execute(WAITING).fetchone() == (True,))

        os.killpg(process.pid, signal.SIGINT)
        output, complaint = await process.communicate()

    # Where it is interrupted in a piece of code that is made at run time, Python ends by the signal: a shell calls both 130.
    assert process.returncode in {130, -signal.SIGINT}
    assert (output, complaint) == (b"", b"hydracore: interrupted\n")


async def test_rows_without_a_history_or_outside_all_lanes_are_found(log: Log, forger: Forger) -> None:
    forger.do(
        "UPDATE instance SET id = '00000000-0000-4000-8000-000000000006' WHERE attempt = 1",
        "UPDATE event SET lane = 64 WHERE lane = 6 AND seq = 12",
        "INSERT INTO fleet_member SELECT -1, gen_random_uuid(), 'running', 'hetzner', 'local', 'starter'",
        "INSERT INTO checkpoint (follower, lane, seq) VALUES ('activity', 99, 4)",
        "ALTER TABLE lane DROP CONSTRAINT lane_lane_check",
        "INSERT INTO lane VALUES (77)",
    )

    _, findings = verify_findings(log)

    kinds = {(finding["kind"], finding.get("table"), finding.get("lane")) for finding in findings}
    assert {("row_extra", "instance", None), ("row_missing", "instance", 6), ("row_extra", "fleet_member", -1)} <= kinds
    assert {("wrong_lane", None, lane) for lane in (64, 77, 99)} | {("event_missing", None, 6)} <= kinds


async def test_rows_without_a_position_in_their_lane_are_found(log: Log, forger: Forger) -> None:
    forger.do(
        "ALTER TABLE event DROP CONSTRAINT event_pkey CASCADE",
        "ALTER TABLE event ALTER seq DROP NOT NULL",
        "ALTER TABLE command ALTER first_seq DROP NOT NULL",
        "ALTER TABLE stream DROP CONSTRAINT stream_pkey CASCADE",
        "ALTER TABLE stream ALTER stream_id DROP NOT NULL",
        "UPDATE event SET seq = NULL WHERE lane = 6 AND seq = 12",
        "UPDATE command SET first_seq = NULL WHERE lane = 6 AND first_seq = 1",
        "UPDATE stream SET stream_id = NULL WHERE lane = 6",
    )

    _, findings = verify_findings(log)

    assert {(finding["kind"], finding["what"]) for finding in findings} >= {
        ("wrong_lane", f"The table {table} has rows of lane 6 that do not exist in the log")
        for table in ("event", "command", "stream")
    }


async def test_a_log_is_verified_without_findings_while_it_grows(log: Log) -> None:
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await create_instance(log.store, customer_id=f"customer-{writer}", key=f"{number}")
            await log.rename(writer % 3, f"name {writer} {number}")
            if number % 10 == 0:
                await log.sealer.seal()
            await asyncio.sleep(BETWEEN_WRITES_S)

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    request = Request(conninfo=log.url, seals=log.file, full_speed=True)
    reports = [await asyncio.to_thread(verify, request, Progress()) for _ in range(2)]
    stop.set()
    await asyncio.gather(*writers)

    assert [report.findings for report in reports] == [[], []]
    assert reports[0].events < reports[1].events


async def test_the_client_encoding_does_not_change_what_is_written_or_read(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "WIN1252")
    async with sealed_log(f"{database_url}?client_encoding=LATIN1", tmp_path) as log:
        await log.rename(0, "Zoë")
        result = run_audit(log, "verify")
    with psycopg.connect(database_url, client_encoding="UTF8") as connection:
        names = connection.execute("SELECT agent_name FROM instance ORDER BY version DESC").fetchone()

    assert (result.exit_code, names) == (0, ("Zoë",))


@pytest.mark.parametrize(
    ("version", "type_"),
    [(2, "config_changed"), (1, "name_chosen")],
    ids=["a new version", "a new type"],
)
async def test_an_event_of_a_newer_release_is_a_note_and_hides_no_other_finding(
    log: Log, forger: Forger, version: int, type_: str
) -> None:
    await update_projections(log)
    forger.connection.execute(
        "UPDATE event SET schema_version = %s, type = %s, payload = replace(payload::text, type, %s)::json"
        " WHERE lane = 6 AND seq = 7",
        (version, type_, type_),
    )
    forger.redo_event(7)
    forger.redo_command(7)
    forger.redo_links()
    forger.do("DELETE FROM seal")

    verified = run_audit(log, "verify", "--json")
    forger.do("UPDATE instance SET status = 'running' WHERE lane = 6")
    status, findings = verify_findings(log)

    assert (verified.exit_code, json.loads(verified.stdout)["findings"]) == (0, [])
    notes = [note for note in json.loads(verified.stdout)["notes"] if "newer HydraCore" in note]
    assert [note.partition(" was written by")[0] for note in notes] == [f"Version {version} of event {type_}"]
    assert (status, {finding["stream_id"] for finding in findings}) == (1, set(map(str, log.ids[1:])))


async def test_events_of_an_older_version_are_verified_loaded_and_compared(
    log: Log, forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first change of the name, as a version 0 would have stored it.
    monkeypatch.setitem(
        upcast.STEPS, ("config_changed", 0), lambda fields: {**fields, "agent_name": fields.pop("name")}
    )
    forger.do(
        "UPDATE event SET payload = replace(payload::text, 'agent_name', 'name')::json, schema_version = 0"
        " WHERE lane = 6 AND type = 'config_changed'"
    )
    for seq in range(7, 13):
        forger.redo_event(seq)
        forger.redo_command(seq)
    forger.redo_links()
    forger.do("DELETE FROM seal")

    status, findings = verify_findings(log)
    async with log.pool.connection():
        state = await type(log.store)(log.pool, inline=()).load(log.ids[0])

    assert (status, findings) == (0, [])
    assert state is not None
    assert state.agent_name == "second"
