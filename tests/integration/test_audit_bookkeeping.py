"""Forging the records of which read tables are served gets nothing past a verification, nor past an append's own check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

from hydracore.audit.verifying import Progress, Request, verify
from tests.next_release import ActivityV2
from tests.rebuilding import rebuild_here
from tests.sealed_log import Forger, Log, SealedLogs, run_audit, update_projections


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        await update_projections(made)
        yield made


@pytest.fixture
def forger(log: Log) -> Generator[Forger]:
    """A forger with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        yield Forger(connection)


class Appending(Progress):
    """Has one event appended, which no follower applies, as soon as it is known where the lanes end."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()

    def begin(self, total: int) -> None:
        asyncio.run_coroutine_threadsafe(self._log.rename(0, "third"), self._loop).result()


@pytest.mark.parametrize(
    ("name", "forgeries"),
    [
        ("instance", ("DELETE FROM instance", "DELETE FROM projection WHERE name = 'instance'")),
        ("activity", ("DELETE FROM activity", "DELETE FROM projection WHERE name = 'activity'")),
    ],
)
async def test_an_emptied_table_is_found_even_if_the_record_that_it_is_served_is_deleted_too(
    log: Log, forger: Forger, name: str, forgeries: tuple[str, ...]
) -> None:
    forger.do(*forgeries)

    result = run_audit(log, "verify", "--json")

    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["kind"], finding["table"]) == (1, "projection_missing", "projection")
    assert finding["what"].startswith(f"The table projection has no row of {name}, although its rows are served")


async def test_rows_missing_behind_a_deleted_checkpoint_are_noted_with_their_lane(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM activity", "DELETE FROM checkpoint WHERE follower = 'activity'")

    result = run_audit(log, "verify")

    what = "activity has not applied all of the log; later events were not compared"
    assert (result.exit_code, f"note: {what}: lane 6 (to 0 of 12)" in result.stdout.splitlines()) == (0, True)


async def test_events_appended_during_a_verification_need_not_be_followed_yet(log: Log, forger: Forger) -> None:
    report = await asyncio.to_thread(verify, Request(conninfo=log.url), Appending(log))

    assert report.findings == []
    assert [note for note in report.notes if "has not applied all of the log" in note] == []
    assert forger.connection.execute("SELECT max(seq) FROM event").fetchone() == (13,)


async def test_an_invented_projection_version_excuses_no_edited_table(log: Log, forger: Forger) -> None:
    forger.do("UPDATE fleet SET entries = entries + 7", "UPDATE projection SET version = 2 WHERE name = 'fleet'")

    result = run_audit(log, "verify", "--json")

    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["kind"], finding["table"]) == (1, "projection_wrong", "projection")


async def test_a_projection_version_of_a_newer_release_is_a_note_and_with_strict_a_finding(log: Log) -> None:
    await rebuild_here(log.url, ActivityV2())
    copy = ("--seals", str(log.file.path))

    told = await asyncio.to_thread(run_audit, log, "verify", *copy)
    strict = await asyncio.to_thread(run_audit, log, "verify", *copy, "--strict")

    what = "activity is served in a version that this release does not have: not compared"
    assert (told.exit_code, told.stdout.splitlines()[0]) == (0, f"note: {what}")
    assert (strict.exit_code, strict.stdout.splitlines()[0]) == (1, f"the log: not_proven: {what}")


async def test_strict_verification_does_not_accept_a_checkpoint_as_an_excuse_for_missing_rows(
    log: Log, forger: Forger
) -> None:
    words = ("verify", "--strict", "--seals", str(log.file.path))
    with log.file.path.open("ab") as file:
        file.write(b'{"number":')  # As a crash leaves it; it hides no seal.
    before = await asyncio.to_thread(run_audit, log, *words)
    forger.do("DELETE FROM activity WHERE lane = 6", "UPDATE checkpoint SET seq = 0 WHERE follower = 'activity'")

    after = await asyncio.to_thread(run_audit, log, *words)

    assert (before.exit_code, before.stdout.splitlines()[-1].partition(" in ")[0]) == (0, "0 findings")
    assert (after.exit_code, after.stdout.startswith("the log: not_proven: activity ")) == (1, True)


async def test_strict_verification_of_a_part_of_the_log_is_a_usage_error(log: Log) -> None:
    for part in (("--lane", "6"), ("--since-seal",), ("--no-replay",)):
        assert run_audit(log, "verify", "--strict", *part).exit_code == 2


async def test_a_dropped_read_table_is_a_finding_and_hides_no_other(log: Log, forger: Forger) -> None:
    forger.do("DROP TABLE activity", "DROP TABLE instance", "DELETE FROM provision_log", "DELETE FROM fleet")

    result = run_audit(log, "verify", "--json")

    findings = {(found["kind"], found["table"]) for found in json.loads(result.stdout)["findings"]}
    gone = {("table_missing", "activity"), ("table_missing", "instance")}
    assert (result.exit_code, findings) == (1, gone | {("row_missing", "provision_log"), ("row_missing", "fleet")})


async def test_an_append_fails_if_no_record_says_which_rows_are_served(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM projection WHERE name = 'instance'")

    with pytest.raises(psycopg.errors.UndefinedObject, match="projection instance has no row"):
        await log.rename(0, "third")

    assert forger.connection.execute("SELECT max(seq) FROM event").fetchone() == (12,)
