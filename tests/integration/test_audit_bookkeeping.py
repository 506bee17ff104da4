"""What says which read tables are served is nobody's way past a verification, nor past an append's own check."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

from tests.audit_log import Forger, Log, follow, run, sealed_log


@pytest.fixture
async def log(database_url: str, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_log(database_url, tmp_path) as made:
        await follow(made)
        yield made


@pytest.fixture
def forger(log: Log) -> Generator[Forger]:
    """Somebody with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        yield Forger(connection)


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
    assert finding["what"].startswith(f"The table projection has no row of {name}, whose rows are read")


async def test_rows_that_the_database_itself_excuses_are_a_note_of_all_lanes(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM activity", "DELETE FROM checkpoint WHERE follower = 'activity'")

    result = run(log, "verify")

    what = "activity has not followed all of the log, and what comes after was not compared"
    assert (result.exit_code, f"note: {what}: lane 6 (to 0 of 12)" in result.stdout.splitlines()) == (0, True)


async def test_nothing_is_appended_where_nothing_says_which_rows_are_served(log: Log, forger: Forger) -> None:
    forger.do("DELETE FROM projection WHERE name = 'instance'")

    with pytest.raises(psycopg.errors.UndefinedObject, match="projection instance has no row"):
        await log.name(0, "third")

    assert forger.connection.execute("SELECT max(seq) FROM event").fetchone() == (12,)
