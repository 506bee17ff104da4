"""What says which read tables are served is nobody's way past a verification, nor past an append's own check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

from hydracore.audit.verifying import Progress, Request, verify
from tests.next_release import ActivityV2
from tests.rebuilding import rebuilt
from tests.sealed_log import Forger, Log, SealedLogs, follow, run


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        await follow(made)
        yield made


@pytest.fixture
def forger(log: Log) -> Generator[Forger]:
    """Somebody with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        yield Forger(connection)


class Appending(Progress):
    """Has one event appended, which nobody follows, as soon as it is known where the lanes end."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()

    def begin(self, total: int) -> None:
        asyncio.run_coroutine_threadsafe(self._log.name(0, "third"), self._loop).result()


@pytest.mark.parametrize(
    ("name", "forgeries"),
    [
        ("instance", ("DELETE FROM instance", "DELETE FROM projection WHERE name = 'instance'")),
        ("activity", ("DELETE FROM activity", "DELETE FROM projection WHERE name = 'activity'")),
    ],
)
async def test_an_edited_table_is_found_also_where_nothing_says_any_more_that_it_is_served(
    log: Log, forger: Forger, name: str, forgeries: tuple[str, ...]
) -> None:
    forger.do(*forgeries)

    result = run(log, "verify", "--json")

    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["kind"], finding["table"]) == (1, "projection_missing", "projection")
    assert finding["what"].startswith(f"The table projection has no row of {name}, although its rows are served")


async def test_rows_that_the_database_itself_excuses_are_a_note_of_all_lanes(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM activity", "DELETE FROM checkpoint WHERE follower = 'activity'")

    result = run(log, "verify")

    what = "activity has not applied all of the log; later events were not compared"
    assert (result.exit_code, f"note: {what}: lane 6 (to 0 of 12)" in result.stdout.splitlines()) == (0, True)


async def test_what_is_appended_while_the_log_is_verified_has_not_to_be_followed_yet(log: Log, forger: Forger) -> None:
    report = await asyncio.to_thread(verify, Request(conninfo=log.url), Appending(log))

    assert report.findings == []
    assert [note for note in report.notes if "has not applied all of the log" in note] == []
    assert forger.connection.execute("SELECT max(seq) FROM event").fetchone() == (13,)


async def test_a_version_that_no_release_has_made_excuses_no_table(log: Log, forger: Forger) -> None:
    forger.do("UPDATE fleet SET entries = entries + 7", "UPDATE projection SET version = 2 WHERE name = 'fleet'")

    result = run(log, "verify", "--json")

    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["kind"], finding["table"]) == (1, "projection_wrong", "projection")


async def test_a_version_that_a_newer_release_has_built_is_a_note_and_in_strictness_a_finding(log: Log) -> None:
    await rebuilt(log.url, ActivityV2())
    copy = ("--seals", str(log.file.path))

    told = await asyncio.to_thread(run, log, "verify", *copy)
    strict = await asyncio.to_thread(run, log, "verify", *copy, "--strict")

    what = "activity is served in a version that this release does not have: not compared"
    assert (told.exit_code, told.stdout.splitlines()[0]) == (0, f"note: {what}")
    assert (strict.exit_code, strict.stdout.splitlines()[0]) == (1, f"the log: not_proven: {what}")


async def test_a_strict_auditor_takes_nobody_s_word_for_rows_that_are_not_there(log: Log, forger: Forger) -> None:
    words = ("verify", "--strict", "--seals", str(log.file.path))
    with log.file.path.open("ab") as file:
        file.write(b'{"number":')  # A crash left that, and hid no seal with it.
    before = await asyncio.to_thread(run, log, *words)
    forger.do("DELETE FROM activity WHERE lane = 6", "UPDATE checkpoint SET seq = 0 WHERE follower = 'activity'")

    after = await asyncio.to_thread(run, log, *words)

    assert (before.exit_code, before.stdout.splitlines()[-1].partition(" in ")[0]) == (0, "0 findings")
    assert (after.exit_code, after.stdout.startswith("the log: not_proven: activity ")) == (1, True)


async def test_what_a_strict_auditor_wants_cannot_be_had_of_a_part(log: Log) -> None:
    for part in (("--lane", "6"), ("--since-seal",), ("--no-replay",)):
        assert run(log, "verify", "--strict", *part).exit_code == 2


async def test_a_read_table_that_is_gone_is_a_finding_and_hides_no_other(log: Log, forger: Forger) -> None:
    forger.do("DROP TABLE activity", "DROP TABLE instance", "DELETE FROM provision_log", "DELETE FROM fleet")

    result = run(log, "verify", "--json")

    findings = {(found["kind"], found["table"]) for found in json.loads(result.stdout)["findings"]}
    gone = {("table_missing", "activity"), ("table_missing", "instance")}
    assert (result.exit_code, findings) == (1, gone | {("row_missing", "provision_log"), ("row_missing", "fleet")})


async def test_nothing_is_appended_where_nothing_says_which_rows_are_served(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM projection WHERE name = 'instance'")

    with pytest.raises(psycopg.errors.UndefinedObject, match="projection instance has no row"):
        await log.name(0, "third")

    assert forger.connection.execute("SELECT max(seq) FROM event").fetchone() == (12,)
