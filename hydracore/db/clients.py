"""Programs of PostgreSQL that we run as its clients. The bundled ones are of one version, and speak with older servers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Final, Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hydracore import wheels
from hydracore.db.complaints import one_line

#: How much of what a program says is passed on at once.
PIECE_BYTES: Final = 256 * 1024


def postgres_client(name: Literal["pg_dump", "pg_restore", "psql"]) -> Path:
    """A program that speaks with servers of its own version and of older ones. Anybody may run it who can read the wheel."""
    return wheels.postgres_programs() / name


def reached(database_url: str) -> tuple[str, dict[str, str]]:
    """Where the database is, and the environment to reach it from: the password goes where other users cannot see it."""
    given = conninfo_to_dict(database_url)
    password = str(given.pop("password", None) or "")
    environ = {**os.environ, "PGPASSWORD": password} if password else dict(os.environ)
    return make_conninfo("", **{name: str(value) for name, value in given.items() if value is not None}), environ


def told(complaints: IO[bytes]) -> str:
    """What a program has written there, in one line."""
    complaints.seek(0)
    return one_line(complaints.read().decode(errors="replace"))
