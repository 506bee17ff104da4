"""The database: the numbered migrations that lead to schema.sql, connections and their pools, backup and restore.

These SQL files stand at the top of a checkout and inside this package in a wheel.
"""

from __future__ import annotations

import hashlib
import os
import time
from functools import cache
from importlib import resources
from pathlib import Path

import psycopg

from events.sql import Statements

# psycopg parses dates in ISO format only. libpq sends this variable to every server, where it overrides the settings of the database,
# the role and the URL. Unlike options, poolers accept it.
os.environ["PGDATESTYLE"] = "ISO"

#: Key of the advisory lock that lets one migration run at a time ("hydra" in ASCII).
LOCK_KEY = 0x6879647261

#: How long a migration waits for the lock of a table that is in use. Later users of the table queue
#: behind the migration, so it gives up then, and tries again after a pause.
LOCK_WAIT_MS = 500
LOCK_PAUSE_S = 1.0
LOCK_TRIES_MAX = 40

_NO_LIMITS = Statements("events", "session.sql")["unlimited"]

_CREATE_MIGRATION_TABLE = """
CREATE TABLE IF NOT EXISTS migration (
    name text PRIMARY KEY,
    digest bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(Exception):
    """The database cannot be migrated to this version.

    A migration was edited after it was applied, is unknown to this version of the code, needs a table that is
    always in use, or raises an exception because of the data. Or the encoding of the database is not UTF-8.
    """


@cache
def migrations() -> tuple[tuple[str, str], ...]:
    """Every migration as (name, SQL), in order."""
    packaged = resources.files("hydracore.db").joinpath("migrations")
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return tuple((entry.name.removesuffix(".sql"), entry.read_text()) for entry in files)


def migrate(database_url: str) -> list[str]:
    """Apply the missing migrations, each in its own transaction, and return their names.

    Safe to run from several machines at once. Raises `MigrationError`, and psycopg's errors as they are.
    """
    applied: list[str] = []
    with psycopg.connect(database_url, autocommit=True) as connection:
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            raise MigrationError(f"The database has the encoding {encoding}: create one with ENCODING 'UTF8'.")
        connection.execute(_NO_LIMITS)
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        connection.execute("SET client_min_messages = warning")
        connection.execute(_CREATE_MIGRATION_TABLE)
        known = {name: bytes(digest) for name, digest in connection.execute("SELECT name, digest FROM migration")}
        wanted = migrations()
        unknown = sorted(known.keys() - {name for name, _ in wanted})
        if unknown:
            raise MigrationError(
                f"The database has migrations that this release does not know ({', '.join(unknown)}): use a newer release."
            )
        for name, statements in wanted:
            script = statements.encode()
            digest = hashlib.sha256(script).digest()
            if name in known:
                if known[name] != digest:
                    raise MigrationError(
                        f"The migration {name} was edited after it was applied: undo the edit and add a new migration instead."
                    )
                continue
            _apply(connection, name, script, digest)
            applied.append(name)
    return applied


def _apply(connection: psycopg.Connection, name: str, script: bytes, digest: bytes) -> None:
    for _ in range(LOCK_TRIES_MAX):
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(LOCK_WAIT_MS),))
                connection.execute(script)
                connection.execute("INSERT INTO migration (name, digest) VALUES (%s, %s)", (name, digest))
        except psycopg.errors.LockNotAvailable:
            time.sleep(LOCK_PAUSE_S)
        except psycopg.errors.RaiseException as error:
            raise MigrationError(f"{name}: {error.diag.message_primary}: {error.diag.message_hint}") from error
        else:
            return
    raise MigrationError(
        f"{name} could not lock a table, because another session keeps using it, such as a backup: try again when it is done."
    )
