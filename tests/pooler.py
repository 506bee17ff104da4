"""Runs PgBouncer in transaction mode. PgBouncer is a system package; where it is missing, its tests are skipped."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from hydracore.embedded.ports import free_port
from tests.waiting import until

#: The first PgBouncer that keeps track of prepared statements in transaction mode.
PREPARED_STATEMENTS_SINCE = (1, 21)

needs_pooler = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="PgBouncer is a system package, and not installed here"
)


def pooler_version() -> tuple[int, ...]:
    """As the program says it: `PgBouncer 1.18.0`, and more lines."""
    told = subprocess.run(["pgbouncer", "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(int(part) for part in told.split()[1].split("."))


@asynccontextmanager
async def pooled(database_url: str, *, prepared: bool) -> AsyncGenerator[str]:
    """The database behind a PgBouncer in transaction mode."""
    # Not below pytest's folders: PgBouncer refuses to run as root, and nobody else may look into those.
    with tempfile.TemporaryDirectory(prefix="hydracore-pooler-") as folder:
        url, command = configure_pooler(database_url, Path(folder), prepared=prepared)
        pooler = await asyncio.create_subprocess_exec(*command)

        async def answers() -> bool:
            assert pooler.returncode is None, "PgBouncer ended"
            with suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(url, prepare_threshold=None):
                    return True
            return False

        try:
            await until(answers)
            yield url
        finally:
            with suppress(ProcessLookupError):
                pooler.terminate()
            await pooler.wait()


def configure_pooler(database_url: str, folder: Path, *, prepared: bool) -> tuple[str, list[str]]:
    """The URL through the pooler, and the command that starts it."""
    place, port = conninfo_to_dict(database_url), free_port()
    (folder / "users.txt").write_text(f'"{place["user"]}" "{place["password"]}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={place['host']} port={place['port']}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {folder / 'users.txt'}\n"
        f"pool_mode = transaction\n{'max_prepared_statements = 100' if prepared else ''}\n"
        "ignore_startup_parameters = extra_float_digits,options\n"
    )
    folder.chmod(0o755)
    as_whom = ["-u", "nobody"] if os.getuid() == 0 else []
    url = f"postgresql://{place['user']}:{place['password']}@127.0.0.1:{port}/{place['dbname']}"
    return url, ["pgbouncer", "-q", *as_whom, str(folder / "pgbouncer.ini")]
