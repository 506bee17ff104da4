"""What an audit is given may be anything: each bad word is a usage error, each impossible value in the log a place in it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.sealed_log import Log, SealedLogs, run
from tests.waiting import until

#: Bytes that are no characters, as Python passes them on.
NO_TEXT = b"\xff".decode(errors="surrogateescape")
WAITING = b"SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
NEVER_MS = 99_999_999_999_999_999


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        yield made


def forge(log: Log, *statements: bytes, **values: object) -> None:
    """Do that with the owner's rights."""
    with psycopg.connect(log.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement, values)


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--public-key", "é"),
        ("verify", "--public-key", NO_TEXT),
        ("show", "--tenant", NO_TEXT),
        ("show", "--tenant", "acme", "--actor", NO_TEXT),
        ("export", "--tenant", NO_TEXT, "--output", "unwritten"),
        ("erase-customer", NO_TEXT),
        ("erase-customer", "ada", "--tenant", NO_TEXT),
    ],
)
async def test_what_is_no_text_is_a_usage_error(log: Log, words: tuple[str, ...], tmp_path: Path) -> None:
    result = await asyncio.to_thread(run, log, *words, HYDRACORE_ERASURE_FILE=str(tmp_path / "erasures.jsonl"))

    assert result.exit_code == 2
    assert "Usage:" in result.stderr


async def test_a_list_of_the_erased_that_is_damaged_is_work_that_cannot_be_done(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "erasures.jsonl"
    file.write_text('{"tenant_id":"acme"}\n')
    words = ("erase-customer", "ada", "--also-live", "--yes")

    result = await asyncio.to_thread(run, log, *words, HYDRACORE_ERASURE_FILE=str(file))

    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1)
    assert "a line is damaged" in result.stderr


async def test_a_time_of_an_event_that_no_calendar_has_is_shown_as_its_number(log: Log) -> None:
    forge(
        log,
        b"UPDATE event SET payload = regexp_replace(payload::text, '(.at_ms.:)[0-9]+', '\\1' || %(ms)s)::json"
        b" WHERE lane = 6 AND seq IN (1, 7)",
        ms=str(NEVER_MS),
    )
    first = str(log.ids[0])

    told = [await asyncio.to_thread(run, log, "show", *words) for words in ((first,), (first, "--json"))]
    state = await asyncio.to_thread(run, log, "state", first)

    assert [(each.exit_code, each.stderr) for each in (*told, state)] == [(0, "")] * 3
    assert f'"happened_at":{NEVER_MS}' in told[1].stdout
    (created,) = [line for line in state.stdout.splitlines() if "created_ms" in line]
    assert created.split() == ["created_ms", str(NEVER_MS)]


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC"])
async def test_a_time_of_the_log_that_no_calendar_has_is_an_alarm_with_its_place(
    log: Log, tmp_path: Path, time: str
) -> None:
    forge(
        log,
        b"UPDATE event SET recorded_at = %(time)s WHERE lane = 6 AND seq = 10",
        b"UPDATE command SET recorded_at = %(time)s WHERE lane = 6 AND first_seq = 10",
        time=time,
    )
    first, second = map(str, log.ids[:2])
    output = ("--output", str(tmp_path / "export"))

    for words in (
        ("show", first),
        ("show", "--tenant", "acme"),
        ("show", first, "--after", "6:10"),
        ("state", first),
        ("export", first, *output),
        ("export", second, *output),
    ):
        result = await asyncio.to_thread(run, log, *words)

        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert "Lane 6 at 10:" in result.stderr


async def test_a_worker_that_is_killed_is_one_line_and_no_finding(log: Log) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection, connection.transaction():
        # Somebody is in the way, so that the work cannot be over before a worker is killed.
        connection.execute(b"LOCK TABLE instance IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hydracore", "audit", "verify", "--workers", "2"),
            env=os.environ | {"HYDRACORE_DATABASE_URL": log.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await until(lambda: workers_of(process.pid) != [])
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        output, complaint = await process.communicate()

    assert (process.returncode, output) == (3, b"")
    assert complaint == b"hydracore: A worker process was killed, perhaps for lack of memory: try fewer --workers\n"


async def test_whoever_verifies_lanes_ends_with_a_command_that_is_killed(log: Log) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection, connection.transaction():
        connection.execute(b"LOCK TABLE instance IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hydracore", "audit", "verify", "--workers", "2"),
            env=os.environ | {"HYDRACORE_DATABASE_URL": log.url},
        )
        # One at least is at work.
        await until(lambda: connection.execute(WAITING).fetchone() == (True,))
        workers = workers_of(process.pid)
        process.kill()
        await process.wait()

        assert workers
        await until(lambda: not any(map(lives_on, workers)))


async def test_a_verification_that_is_told_to_stop_says_so_in_one_line(log: Log) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection, connection.transaction():
        connection.execute(b"LOCK TABLE instance IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hydracore", "audit", "verify", "--workers", "2"),
            env=os.environ | {"HYDRACORE_DATABASE_URL": log.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await until(lambda: connection.execute(WAITING).fetchone() == (True,))
        process.terminate()
        output, complaint = await process.communicate()

    assert (process.returncode, output, complaint) == (130, b"", b"hydracore: interrupted\n")


def lives_on(pid: int) -> bool:
    # One that nobody has waited for yet is dead all the same.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def workers_of(parent: int) -> list[int]:
    """The processes that look at lanes for this one."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
