"""Backups that keep an erasure true: the log's, with everything but the customers' keys, and the keys' own.

Who has the log's backup, however old, has ciphertext. The keys' backup is the one that must not get old: what is destroyed today
is in it for as long as it is kept.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hydracore.embedded.binaries import pg_dump

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
    """Write a dump in PostgreSQL's custom format, of one moment, for pg_restore. Raises `BackupFailed`."""
    given = conninfo_to_dict(database_url)
    # The password goes where other users of the machine cannot see it.
    password = str(given.pop("password", None) or "")
    environ = {**os.environ, "PGPASSWORD": password} if password else dict(os.environ)
    place = make_conninfo("", **{name: str(value) for name, value in given.items() if value is not None})
    command = [pg_dump(), "--format=custom", "--no-owner", *_OPTIONS[what], f"--file={path}", f"--dbname={place}"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 - our program
    if done.returncode:
        raise BackupFailed(" ".join(done.stderr.split()) or f"pg_dump ended with {done.returncode}")
