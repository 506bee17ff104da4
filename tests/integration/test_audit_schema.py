"""A missing or altered table of the log is a finding that names what has to be restored."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from hydracore.audit.schema_check import check_schema
from tests.sealed_log import Forger, Log, run_audit
from tests.verify_fixtures import FORGE, forger, log, verify_findings

__all__ = ["forger", "log"]

#: The columns of the log and its seals.
COLUMNS = """
SELECT attrelid::regclass::text, attname
  FROM pg_attribute
 WHERE attrelid IN ('lane'::regclass, 'stream'::regclass, 'command'::regclass, 'event'::regclass, 'seal'::regclass) AND attnum > 0
 ORDER BY 1, 2
"""


@pytest.mark.parametrize(
    ("statement", "expected", "lacking"),
    [
        (
            "ALTER TABLE event ALTER payload TYPE jsonb USING payload::text::jsonb",
            ("column_missing", "event"),
            "payload",
        ),
        # Without a check of the types, events that exist would seem to be missing.
        ("ALTER TABLE event ALTER seq TYPE numeric", ("column_missing", "event"), "seq"),
        ("ALTER TABLE event RENAME COLUMN command_id TO other", ("column_missing", "event"), "command_id"),
        ("ALTER TABLE seal DROP COLUMN root, DROP COLUMN links", ("column_missing", "seal"), "links, root"),
        ("DROP TABLE stream", ("table_missing", "stream"), "stream"),
        ("DROP TABLE seal", ("table_missing", "seal"), "seal"),
        ("DROP VIEW lane_head", ("table_missing", "lane_head"), "lane_head"),
    ],
)
async def test_a_missing_or_altered_table_or_column_of_the_log_is_named(
    log: Log, forger: Forger, statement: str, expected: tuple[str, str], lacking: str
) -> None:
    forger.do(statement)

    status, (finding,) = verify_findings(log, "--strict", "--seals", str(log.file.path))

    assert (status, finding["kind"], finding["table"]) == (1, *expected)
    assert lacking in finding["what"]
    assert "nothing else was verified" in finding["what"]


async def test_a_dropped_seal_table_is_a_finding_even_if_the_copy_is_lost_too(
    log: Log, forger: Forger, tmp_path: Path
) -> None:
    forger.do("DROP TABLE seal")

    result = run_audit(log, "verify", HYDRACORE_SEAL_FILE=str(tmp_path / "lost.jsonl"))

    assert (result.exit_code, "table seal: table_missing: seal is missing" in result.stdout) == (1, True)


async def test_every_missing_column_of_the_log_is_found(log: Log) -> None:
    with psycopg.connect(log.url) as connection:
        columns = connection.execute(COLUMNS.encode()).fetchall()
        for table, column in columns:
            drop = sql.SQL("ALTER TABLE {} DROP COLUMN {} CASCADE")
            connection.execute(drop.format(sql.Identifier(table), sql.Identifier(column)))

            (of_table,) = [each for each in check_schema(connection, replay=True).log if each.table == table]

            assert (of_table.kind, f"({column})" in of_table.what) == ("column_missing", True)
            connection.rollback()
        assert check_schema(connection, replay=True) == ([], [])
    assert len(columns) == 38


async def test_only_the_tables_that_a_verification_needs_have_to_exist(log: Log, forger: Forger) -> None:
    forger.do("DROP TABLE snapshot", "DROP TABLE projection_lane")

    assert verify_findings(log, "--no-replay") == (0, [])
    assert [finding["table"] for finding in verify_findings(log)[1]] == ["projection_lane", "snapshot"]


@pytest.mark.parametrize(
    ("statement", "expected", "lacking"),
    [
        ("DROP TABLE snapshot", ("table_missing", "snapshot"), "snapshot"),
        ("DROP TABLE projection CASCADE", ("table_missing", "projection"), "projection"),
        (
            "DROP TABLE projection_generation CASCADE",
            ("table_missing", "projection_generation"),
            "projection_generation",
        ),
        ("DROP TABLE projection_intervention CASCADE", ("table_missing", "projection_skipped"), "projection_skipped"),
        ("ALTER TABLE snapshot DROP COLUMN digest", ("column_missing", "snapshot"), "digest"),
    ],
)
async def test_a_missing_table_that_only_a_replay_needs_hides_no_finding_in_the_log(
    log: Log, forger: Forger, statement: str, expected: tuple[str, str], lacking: str
) -> None:
    forger.do(statement, FORGE.format(7))

    status, (gone, *edited) = verify_findings(log, "--seals", str(log.file.path))

    assert (status, gone["kind"], gone["table"]) == (1, *expected)
    assert lacking in gone["what"]
    assert "read tables and snapshots were not compared" in gone["what"]
    assert [(finding["kind"], finding["seq"]) for finding in edited] == [("event_edited", 7)]


async def test_all_missing_tables_are_named_together(log: Log, forger: Forger) -> None:
    forger.do("DROP TABLE snapshot", "DROP TABLE seal")

    assert [finding["table"] for finding in verify_findings(log)[1]] == ["seal", "snapshot"]
