"""Bad input of an audit: an invalid argument is a usage error, and an impossible value in the log is named with its place."""

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

from tests.sealed_log import Log, SealedLogs, run_audit
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
    """Execute the statements with the owner's rights."""
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
async def test_an_argument_that_is_not_valid_text_is_a_usage_error(
    log: Log, words: tuple[str, ...], tmp_path: Path
) -> None:
    result = await asyncio.to_thread(run_audit, log, *words, HYDRACORE_ERASURE_FILE=str(tmp_path / "erasures.jsonl"))

    assert result.exit_code == 2
    assert "Usage:" in result.stderr


async def test_a_damaged_erasure_file_makes_an_erasure_fail_with_one_line(log: Log, tmp_path: Path) -> None:
    file = tmp_path / "erasures.jsonl"
    file.write_text('{"tenant_id":"acme"}\n')
    words = ("erase-customer", "ada", "--also-live", "--yes")

    result = await asyncio.to_thread(run_audit, log, *words, HYDRACORE_ERASURE_FILE=str(file))

    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1)
    assert "a line is damaged" in result.stderr


async def test_an_out_of_range_event_time_is_shown_as_a_number(log: Log) -> None:
    forge(
        log,
        b"UPDATE event SET payload = regexp_replace(payload::text, '(.at_ms.:)[0-9]+', '\\1' || %(ms)s)::json"
        b" WHERE lane = 6 AND seq IN (1, 7)",
        ms=str(NEVER_MS),
    )
    first = str(log.ids[0])

    told = [await asyncio.to_thread(run_audit, log, "show", *words) for words in ((first,), (first, "--json"))]
    state = await asyncio.to_thread(run_audit, log, "state", first)

    assert [(each.exit_code, each.stderr) for each in (*told, state)] == [(0, "")] * 3
    assert f'"happened_at":{NEVER_MS}' in told[1].stdout
    (created,) = [line for line in state.stdout.splitlines() if "created_ms" in line]
    assert created.split() == ["created_ms", str(NEVER_MS)]


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC"])
async def test_an_out_of_range_recording_time_is_an_alarm_with_its_place(log: Log, tmp_path: Path, time: str) -> None:
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
        result = await asyncio.to_thread(run_audit, log, *words)

        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert "Lane 6 at 10:" in result.stderr


async def test_a_killed_worker_is_reported_in_one_line_and_is_no_finding(log: Log) -> None:
    with psycopg.connect(log.url, autocommit=True) as connection, connection.transaction():
        # A lock is in the way, so that the work cannot be over before a worker is killed.
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


async def test_verification_workers_end_when_their_command_is_killed(log: Log) -> None:
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
        await until(lambda: not any(map(is_running, workers)))


async def test_a_terminated_verification_reports_it_in_one_line(log: Log) -> None:
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


def is_running(pid: int) -> bool:
    # A zombie is dead, although its id exists.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def workers_of(parent: int) -> list[int]:
    """The processes that verify lanes for this one."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
