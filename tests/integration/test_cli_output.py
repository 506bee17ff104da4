"""What commands print, and how they end, when they are interrupted: by Ctrl-C, a closed output, a full disk, a small encoding."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.cloudsim_fixtures import REPOSITORY
from tests.sealed_log import Log, SealedLogs

#: A command that Ctrl-C ends during one of its statements, so that psycopg cannot roll back.
INTERRUPTED_STATEMENT = """
import sys, psycopg
from hydracore.cli import main

@main.command()
def break_off():
    with psycopg.connect(sys.argv[1]) as connection, connection.transaction():
        connection.pgconn.send_query(b"SELECT pg_sleep(60)")
        raise KeyboardInterrupt

main(["break-off"])
"""
#: A module that is imported early, and interrupts its process.
INTERRUPTED_IMPORT = "import os, signal; os.kill(os.getpid(), signal.{})"
#: All settings that a server process needs to start. Nothing listens at the addresses.
SETTINGS = {
    "HYDRACORE_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    "HYDRACORE_REDIS_URL": "redis://127.0.0.1:1",
    "HYDRACORE_MASTER_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    "HYDRACORE_JWT_SECRET": "a-secret-that-is-long-enough-to-sign-with",
    "HYDRACORE_PUBLIC_URL": "http://127.0.0.1:1",
}


@pytest.fixture
async def log(sealed_logs: SealedLogs, tmp_path: Path) -> AsyncGenerator[Log]:
    async with sealed_logs.copy(tmp_path) as made:
        await made.rename(0, "Žofie")
        yield made


def in_bash(log: Log, line: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, output and error output of a shell line in which `$H` is the command, with `pipefail`."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=REPOSITORY,
        env={**os.environ, "H": f"{sys.executable} -m hydracore", "HYDRACORE_DATABASE_URL": log.url, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_during_a_statement_prints_only_that_the_command_was_interrupted(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_STATEMENT, database_url],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "hydracore: interrupted\n")


@pytest.mark.parametrize(
    "program",
    [
        ["-m", "hydracore", "projections", "list"],
        ["-c", "from hydracore.__main__ import main; main()", "fleet"],
    ],
)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("interrupted", ["click", "psycopg"])
def test_a_signal_during_the_imports_of_a_command_ends_it_with_one_line(
    program: list[str], number: str, interrupted: str, tmp_path: Path
) -> None:
    (tmp_path / f"{interrupted}.py").write_text(INTERRUPTED_IMPORT.format(number))

    done = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, **SETTINGS, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "hydracore: interrupted\n")


@pytest.mark.parametrize("part", ["api", "relay", "worker", "cloudsim", "modelsim", "agent"])
@pytest.mark.parametrize("interrupted", ["click", "structlog"])
def test_a_server_process_that_is_stopped_during_its_imports_ends_with_status_0(
    part: str, interrupted: str, tmp_path: Path
) -> None:
    (tmp_path / f"{interrupted}.py").write_text(INTERRUPTED_IMPORT.format("SIGTERM"))
    words = ["--home", str(tmp_path), "--token", "cloud"] if part == "cloudsim" else []

    done = subprocess.run(
        [sys.executable, "-m", "hydracore", part, *words],
        env={**os.environ, **SETTINGS, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", ["audit verify", "audit --help"])
async def test_a_reader_that_closes_the_output_ends_a_command_with_status_141_and_not_as_a_finding(
    log: Log, words: str
) -> None:
    ended = await asyncio.to_thread(in_bash, log, f"$H {words} | true")

    assert ended == (141, "", "")


@pytest.mark.parametrize(
    "words",
    ["audit verify --json", "projections list"],
)
async def test_output_that_cannot_be_written_ends_a_command_with_one_line(log: Log, words: str) -> None:
    ended = await asyncio.to_thread(in_bash, log, f"$H {words} >/dev/full")

    assert ended == (3, "", "hydracore: cannot write to standard output: No space left on device\n")


def test_a_demo_without_a_standard_output_still_reports_a_wrong_setting() -> None:
    line = f"exec {sys.executable} -m hydracore demo >&-"
    environ = {**os.environ, "HYDRACORE_MODEL_BASE_URL": "nowhere"}

    done = subprocess.run(
        ["sh", "-c", line], cwd=REPOSITORY, env=environ, stderr=subprocess.PIPE, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("hydracore: HYDRACORE_MODEL_BASE_URL must be ")


@pytest.mark.parametrize(
    "words",
    ["audit export --tenant acme --output {}", "db backup {}", "audit erase-customer ada --also-live --yes"],
)
async def test_a_file_that_cannot_be_written_is_named_in_the_error(log: Log, tmp_path: Path, words: str) -> None:
    path = tmp_path / "full"
    # Python needs a temporary file of some bytes to choose a temporary directory.
    # Compiled modules would be written in part, and stay so.
    line = f"ulimit -f {1 if 'backup' in words else 0}; PYTHONDONTWRITEBYTECODE=1 $H {words.format(path)}"

    ended = await asyncio.to_thread(in_bash, log, line, HYDRACORE_ERASURE_FILE=str(path))

    assert ended[:2] == (3, "")
    assert ended[2].startswith(f"hydracore: [Errno 27] File too large: '{path}'")
    assert ended[2].count("\n") == 1


async def test_a_character_that_the_output_encoding_lacks_is_escaped_and_json_stays_exact(log: Log) -> None:
    words = f"audit state {log.ids[0]}"
    text = await asyncio.to_thread(in_bash, log, f"$H {words}", PYTHONIOENCODING="latin-1")
    as_json = await asyncio.to_thread(in_bash, log, f"$H {words} --json", PYTHONIOENCODING="latin-1")

    assert (text[0], r"\u017dofie" in text[1]) == (0, True)
    assert (as_json[0], '"Žofie"' in as_json[1]) == (0, True)
