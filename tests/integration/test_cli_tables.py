"""`fleet` and `activity` on the command line: the instances now and in the past, and who did what."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from hydracore.cli import main
from projections.activity_queries import LINES_MAX
from projections.registry import projections
from tests.cloudsim_fixtures import REPOSITORY
from tests.rebuilding import follow_all, rebuild_here, write_instances
from tests.store_commands import open_store

#: Moves two and one days before today's, as (days ago, status, entries, exits).
MOVES = [(2, "pending", 7, 0), (1, "pending", 0, 2), (1, "running", 2, 0)]


async def hydracore(database_url: str, *words: str) -> Result:
    """The command in this process; a command has an event loop of its own, so it runs in a thread."""
    return await asyncio.to_thread(CliRunner().invoke, main, words, env={"HYDRACORE_DATABASE_URL": database_url})


def on_terminal(database_url: str, *words: str, columns: int) -> list[str]:
    """The lines that the command writes on a terminal of so many columns."""
    ours, its = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "hydracore", *words],
            cwd=REPOSITORY,
            env={**os.environ, "HYDRACORE_DATABASE_URL": database_url, "COLUMNS": str(columns)},
            stdout=its,
        )
        os.close(its)
        shown = bytearray()
        try:
            while some := terminal.read(65_536):
                shown += some
        except OSError:
            pass  # Linux says EIO where the other side of a terminal is closed.
        assert process.wait() == 0
    return shown.decode().splitlines()


async def counts(database_url: str, *words: str) -> dict[str, dict[str | None, int]]:
    """The numbers of instances, by time and status."""
    done = await hydracore(database_url, "fleet", "--json", *words)
    assert done.exit_code == 0, done
    found = dict[str, dict[str | None, int]]()
    for one in json.loads(done.stdout):
        found.setdefault(one["at"], {})[one["status"]] = one["instances"]
    return found


@pytest.fixture
async def midnight(owner_conn: psycopg.AsyncConnection) -> datetime:
    """The last midnight. The database has moves at noon of the days before it, and a time zone of its own."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    await owner_conn.execute(f"ALTER DATABASE {owner_conn.info.dbname} SET timezone TO 'Africa/Cairo'".encode())
    for days_ago, status, entries, exits in MOVES:
        hour = midnight - timedelta(days=days_ago, hours=-12)
        moved = (hour, status, entries, exits)
        await owner_conn.execute("INSERT INTO fleet VALUES (3, %s, %s, 'cloudsim', 'local', 'starter', %s, %s)", moved)
    return midnight


def text_of(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


async def test_the_fleet_is_counted_at_any_time(database_url: str, midnight: datetime) -> None:
    noon = midnight - timedelta(hours=36)
    before, behind = text_of(noon), text_of(noon + timedelta(hours=1))

    assert await counts(database_url, "--at", before) == {before: {None: 0}}
    assert await counts(database_url, "--at", f"{noon:%Y-%m-%dT%H}:59:59") == {before: {None: 0}}
    assert await counts(database_url, "--at", behind) == {behind: {"pending": 7}}
    assert list((await counts(database_url)).values()) == [{"pending": 5, "running": 2}]
    last = await hydracore(database_url, "fleet", "--at", text_of(midnight))
    assert last.stdout.splitlines() == [
        f"{text_of(midnight)}  7 in all",
        "       5  pending       cloudsim, local, starter",
        "       2  running       cloudsim, local, starter",
    ]
    first = await hydracore(database_url, "fleet", "--at", "0001-01-01")
    assert first.stdout == "0001-01-01T00:00:00Z  0 in all\n"


async def test_the_fleet_is_counted_over_time(database_url: str, midnight: datetime) -> None:
    first, last = midnight - timedelta(days=2), midnight
    days = await counts(database_url, "--from", text_of(first), "--to", text_of(last))
    noon = midnight - timedelta(hours=12)
    hours = await counts(
        database_url, "--from", text_of(noon), "--to", text_of(noon + timedelta(hours=1)), "--every", "hour"
    )

    day = str((midnight - timedelta(days=1)).date())
    whole = await counts(database_url, "--from", day, "--to", day, "--every", "hour")

    second = text_of(midnight - timedelta(days=1))
    assert days == {
        text_of(first): {None: 0},
        second: {"pending": 7},
        text_of(midnight): {"pending": 5, "running": 2},
    }, "a time without instances is a count, too"
    assert list(hours.values()) == [{"pending": 7}, {"pending": 5, "running": 2}]
    assert list(whole) == [f"{day}T{hour:02}:00:00Z" for hour in range(24)], (
        "an end that is a date includes the whole day"
    )


async def test_without_an_end_the_fleet_is_counted_up_to_now(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    before = datetime.now(UTC)
    yesterday = before.date() - timedelta(days=1)

    done = await hydracore(database_url, "fleet", "--from", str(yesterday))

    [first, *_, last] = [line for line in done.stdout.splitlines() if line.endswith(" in all")]
    assert first == f"{yesterday}T00:00:00Z  0 in all"
    assert last.endswith("  4 in all")
    assert datetime.fromisoformat(last.split()[0]) >= before.replace(microsecond=0)


async def test_activity_shows_who_did_what(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    today = datetime.now(UTC).date()

    async def activity(*words: str) -> list[dict[str, Any]]:
        done = await hydracore(database_url, "activity", "acme", "--json", *words)
        assert done.exit_code == 0, done
        return json.loads(done.stdout)

    everything = await activity()
    assert {one["actor"] for one in everything} == {"api", "worker", "agent:x"}
    assert all(one["first_at"].endswith("Z") for one in everything)
    agents = {one["command"]: one["commands"] for one in await activity("--actor", "agent")}
    assert agents == {"RecordServerCreated": 2, "EnrolAgent": 2, "RecordUsage": 2}
    assert await activity("--actor", "agen") == []
    assert await activity("--to", str(today - timedelta(days=2))) == []
    shown = await hydracore(database_url, "activity", "acme", "--from", str(today - timedelta(days=1)))
    assert any("  api  RequestInstance 4 times, 4 events  " in line for line in shown.stdout.splitlines())


async def test_activity_of_an_unknown_tenant_is_a_usage_error_and_of_an_idle_one_is_not(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=2)
        await follow_all(pool)

    unknown = await hydracore(database_url, "activity", "acmee")
    as_json = await hydracore(database_url, "activity", "acmee", "--json")
    known = await hydracore(database_url, "activity", "acme", "--to", "2020-01-01")

    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr.endswith("\nError: The log has no tenant 'acmee'\n")
    assert (as_json.exit_code, as_json.output) == (2, unknown.output)
    assert (known.exit_code, known.output) == (0, "")


async def test_a_tenant_with_an_api_key_and_no_events_is_known(database_url: str) -> None:
    made = await hydracore(database_url, "api-key", "create", "--tenant", "fresh")
    assert made.exit_code == 0, made

    listed = await hydracore(database_url, "api-key", "list", "--tenant", "fresh")

    assert (listed.exit_code, len(listed.stdout.splitlines()), listed.stderr) == (0, 1, "")


async def test_activity_beyond_the_limit_of_lines_is_cut_with_a_message(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    many = "SELECT 1, 'acme', %s::date, 'admin:' || n, 'Do', 1, 1, now(), now() FROM generate_series(0, %s) n"
    await owner_conn.execute(f"INSERT INTO activity {many}".encode(), (date(2026, 9, 21), LINES_MAX))

    done = await hydracore(database_url, "activity", "acme", "--to", "2026-09-21")

    assert (done.exit_code, len(done.stdout.splitlines())) == (0, LINES_MAX)
    assert done.stderr.startswith(f"hydracore: only the latest {LINES_MAX} lines are shown; ")


@pytest.mark.parametrize("columns", [80, 40])
async def test_names_of_projections_are_not_cut_on_a_narrow_terminal(database_url: str, columns: int) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=4)
        await follow_all(pool)
    for name in ("instance", "usage_daily"):
        await rebuild_here(database_url, projections()[name])

    lines = await asyncio.to_thread(on_terminal, database_url, "projections", "list", columns=columns)

    assert {line.split()[0] for line in lines} >= projections().keys()
    assert lines[-2:] == ["instance: also kept: 1 (previous)", "usage_daily: also kept: 1 (previous)"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    "words",
    [
        "fleet --at noon",
        "fleet --to 2026-01-01",
        "fleet --at 2026-01-01 --from 2026-01-01",
        "fleet --from 2026-01-02 --to 2026-01-01",
        "fleet --from 2020-01-01 --to 2026-01-01",
        "activity",
        "activity a/b",
        "activity acme --from yesterday",
        "activity acme --from 2026-01-02 --to 2026-01-01",
    ],
)
def test_invalid_times_ranges_and_tenants_are_usage_errors(words: str) -> None:
    done = CliRunner().invoke(main, words.split(), env={"HYDRACORE_DATABASE_URL": "postgresql://127.0.0.1:1/none"})

    assert (done.exit_code, done.stderr.startswith("Usage: ")) == (2, True)


@pytest.mark.parametrize("words", ["fleet", "activity acme"])
def test_an_unreachable_database_is_an_error_with_status_3(words: str) -> None:
    done = CliRunner().invoke(main, words.split(), env={"HYDRACORE_DATABASE_URL": "postgresql://127.0.0.1:1/none"})

    assert (done.exit_code, done.stderr.startswith("hydracore: connection failed")) == (3, True)
