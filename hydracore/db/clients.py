"""The bundled client programs of PostgreSQL. They are of one version, and work with older servers too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Final, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hydracore import wheels
from hydracore.db.error_text import one_line

#: The bytes of a program's output that are passed on at once.
CHUNK_BYTES: Final = 256 * 1024


def postgres_client(name: Literal["pg_dump", "pg_restore", "psql"]) -> Path:
    """The path of a program. Whoever can read the wheel can run it."""
    return wheels.postgres_programs() / name


def split_password(database_url: str) -> tuple[str, dict[str, str]]:
    """The connection string without the password, and an environment with it, where other users cannot see it."""
    given = conninfo_to_dict(database_url)
    password = str(given.pop("password", None) or "")
    environ = {**os.environ, "PGPASSWORD": password} if password else dict(os.environ)
    return make_conninfo("", **{name: str(value) for name, value in given.items() if value is not None}), environ


def read_errors(stderr: IO[bytes]) -> str:
    """What a program has written to the file `stderr`, in one line."""
    stderr.seek(0)
    return one_line(stderr.read().decode(errors="replace"))
