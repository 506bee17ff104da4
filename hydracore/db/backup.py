"""Backups that do not undo an erasure: one of the log, with everything except the customers' keys, and one of the keys.

What is sealed in a backup of the log, however old, cannot be read without the keys. A backup of the keys
must not be kept for long: a key that is destroyed today stays in it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Literal

from hydracore.db import pool, readiness
from hydracore.db.clients import CHUNK_BYTES, postgres_client, read_errors, split_password
from hydracore.signals import run_to_completion

BackupKind = Literal["log", "keys"]

_KEY_TABLE: Final = "public.customer_key"

_OPTIONS: Final[dict[BackupKind, tuple[str, ...]]] = {
    # The dump has the table without its rows, so that a restore makes a complete database.
    "log": (f"--exclude-table-data={_KEY_TABLE}",),
    "keys": ("--data-only", f"--table={_KEY_TABLE}"),
}


class BackupFailed(Exception):
    """pg_dump failed. `str()` is its error message."""


def back_up(database_url: str, kind: BackupKind, path: Path) -> None:
    """Write a dump of one moment to `path`, in PostgreSQL's custom format, for pg_restore.

    Call it in a thread without an event loop. Raises `DatabaseUnusable`, `BackupFailed` and `OSError`.

    The database is checked first: pg_dump would copy a wrong one as well, and that would be noticed only when the
    backup is needed. A database of an older release is accepted, because it has to be backed up before it is migrated.

    pg_dump's output passes through this process, so that pg_dump ends when we do. If it wrote the file
    itself, it would go on after a kill -9 of this process, to the last key.
    """
    run_to_completion(
        readiness.check_is_hydracore(pool.conninfo(database_url, role="", application="hydracore-backup"))
    )
    target, environ = split_password(database_url)
    command = [postgres_client("pg_dump"), "--format=custom", "--no-owner", *_OPTIONS[kind], f"--dbname={target}"]
    with (
        path.open("wb") as file,
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=stderr) as process,  # noqa: S603 - our program
    ):
        assert process.stdout is not None
        try:
            shutil.copyfileobj(process.stdout, file, CHUNK_BYTES)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            raise BackupFailed(read_errors(stderr) or f"pg_dump failed with exit code {process.returncode}")
