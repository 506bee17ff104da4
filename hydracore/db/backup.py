"""Backups that keep an erasure true: the log's, with everything but the customers' keys, and the keys' own.

Who has the log's backup, however old, has ciphertext. The keys' backup is the one that must not get old: what is destroyed today
is in it for as long as it is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Literal

from hydracore.db import pool, reaching
from hydracore.db.clients import PIECE_BYTES, postgres_client, reached, told
from hydracore.signals import run_to_its_end

What = Literal["log", "keys"]

_KEYS: Final = "public.customer_key"

_OPTIONS: Final[dict[What, tuple[str, ...]]] = {
    # The table is there, empty: what is restored is a whole database.
    "log": (f"--exclude-table-data={_KEYS}",),
    "keys": ("--data-only", f"--table={_KEYS}"),
}


class BackupFailed(Exception):
    """`str()` is what pg_dump said."""


def back_up(database_url: str, what: What, path: Path) -> None:
    """Write a dump in PostgreSQL's custom format, of one moment, for pg_restore. In a thread without a loop. Raises `DatabaseUnfit`,
    `BackupFailed` and `OSError`.

    pg_dump copies whatever is there, so that one of a wrong database would be found out when it is needed: hence the look. One of an
    older release is right, as before it is migrated it must be copied.

    What pg_dump says goes through us, so that it ends when we do: by itself it would go on behind a kill -9, to the last key.
    """
    run_to_its_end(reaching.look_for_ours(pool.conninfo(database_url, role="", application="hydracore-backup")))
    place, environ = reached(database_url)
    command = [postgres_client("pg_dump"), "--format=custom", "--no-owner", *_OPTIONS[what], f"--dbname={place}"]
    with (
        path.open("wb") as file,
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=complaints) as process,  # noqa: S603 - our program
    ):
        assert process.stdout is not None
        try:
            shutil.copyfileobj(process.stdout, file, PIECE_BYTES)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            raise BackupFailed(told(complaints) or f"pg_dump failed with exit code {process.returncode}")
