"""Restores backups, each in one transaction: completely or not at all."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import psycopg

from events.sql import Statements
from hydracore.db.backup import BackupKind
from hydracore.db.clients import CHUNK_BYTES, postgres_client, read_errors, split_password
from hydracore.db.error_text import one_line

_SQL = Statements("hydracore.db", "restore.sql")
_TABLES = _SQL["tables"]
_ANY_KEY = _SQL["any_key"]
_ROLES = _SQL["roles"]
#: What is run before and after the script of a backup, in its transaction: destroyed keys stay destroyed.
_AROUND: Final[dict[BackupKind, tuple[bytes, bytes]]] = {
    "log": (b"", b""),
    "keys": (_SQL["set_destroyed_aside"] + b";\n", _SQL["destroy_again"] + b";\n"),
}

#: pg_restore writes this line for any server. Servers older than PostgreSQL 17 do not know the setting
#: and would refuse the whole script.
_TIMEOUT: Final = b"SET transaction_timeout = 0;\n"
_TIMEOUT_IF_KNOWN: Final = (
    b"SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout';\n"
)
#: Entries in the list of every dump with a log: the events, and the migrations, which mark it as HydraCore's.
_LOG_ENTRIES: Final = (" TABLE DATA public event ", " TABLE DATA public migration ")
#: A role as pg_dump writes it, and the lines of a dump that name one.
_ROLE: Final = r'("(?:[^"]|"")+"|[^\s";]+)'
_GRANT: Final = re.compile(rf"(?:GRANT|REVOKE) .* (?:TO|FROM) {_ROLE}(?: WITH GRANT OPTION)?;")
_DEFAULT_PRIVILEGES: Final = re.compile(
    rf"ALTER DEFAULT PRIVILEGES FOR ROLE {_ROLE} .* (?:TO|FROM) {_ROLE}(?: WITH GRANT OPTION)?;"
)
#: The keyword for all roles, which is no role itself.
_PUBLIC: Final = "PUBLIC"


class RestoreRefused(Exception):
    """The file cannot be restored there. `str()` says why. Nothing was changed."""


class RestoreFailed(Exception):
    """pg_restore or psql failed. `str()` is the error message. Nothing was changed."""


def restore(database_url: str, path: Path) -> BackupKind:
    """Restore a backup, or any other dump of a HydraCore database that pg_restore reads. Returns what kind it is.

    A backup of the log needs an empty database, one of the keys a database without keys, or with destroyed ones only, which stay
    destroyed. Raises `RestoreRefused`, `RestoreFailed`, `OSError` and psycopg's errors.
    """
    kind = _kind_of(path)
    _check_target(database_url, kind, path)
    target, environ = split_password(database_url)
    restore_command = [postgres_client("pg_restore"), "--no-owner", "--file=-", path]
    psql_command = [postgres_client("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse"]
    with (
        tempfile.TemporaryFile() as restore_stderr,
        tempfile.TemporaryFile() as psql_stderr,
        subprocess.Popen(restore_command, stdout=subprocess.PIPE, stderr=restore_stderr) as reader,  # noqa: S603 - our program
        subprocess.Popen(  # noqa: S603 - our program
            [*psql_command, f"--dbname={target}", "--file=-"],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=psql_stderr,
        ) as writer,
    ):
        is_complete = _run_script(reader, writer, *_AROUND[kind])
        if writer.wait():
            raise RestoreFailed(read_errors(psql_stderr) or f"psql failed with exit code {writer.returncode}")
        if not is_complete:
            raise RestoreFailed(read_errors(restore_stderr) or f"pg_restore failed with exit code {reader.returncode}")
    return kind


def _kind_of(path: Path) -> BackupKind:
    """What kind of backup the file is. Raises `RestoreRefused` where it is no backup of HydraCore."""
    command = [postgres_client("pg_restore"), "--list", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our program
    if done.returncode:
        raise RestoreRefused(f"{path} is not a readable backup: {one_line(done.stderr)}")
    entries = [line for line in done.stdout.splitlines() if line and not line.startswith(";")]
    if entries and all(" TABLE DATA public customer_key " in each for each in entries):
        return "keys"
    if not all(any(rows in each for each in entries) for rows in _LOG_ENTRIES):
        raise RestoreRefused(f"{path} is not a backup of a HydraCore database or of its keys")
    return "log"


def _check_target(database_url: str, kind: BackupKind, path: Path) -> None:
    """Raise `RestoreRefused` where the backup cannot be restored into this database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute(_TABLES).fetchone()
        assert row is not None, "a select of values has a row"
        any_table, any_key_table = row
        if kind == "log":
            if any_table:
                raise RestoreRefused("The database is not empty: create a new one with createdb")
            # Before the roles: in SQL_ASCII their names come as bytes, and none would be found.
            if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
                raise RestoreRefused(f"The database has the encoding {encoding}: create one with ENCODING 'UTF8'.")
            there = {name for (name,) in connection.execute(_ROLES)}
            if missing := sorted(role for name, role in _roles(path).items() if name not in there):
                make = "; ".join(f"CREATE ROLE {role}" for role in missing)
                raise RestoreRefused(f"{path} grants privileges to roles that do not exist. Create them first: {make}")
            return
        if not any_key_table:
            raise RestoreRefused(f"{path} has only the customers' keys: restore the database's backup first")
        if connection.execute(_ANY_KEY).fetchone() == (True,):
            raise RestoreRefused(
                "The database already has customers' keys: they are restored before any part starts. To restore others, begin "
                "again with a new database"
            )


def _roles(path: Path) -> dict[str, str]:
    """The roles that the dump grants rights to or revokes them from: their spelling in SQL by their names."""
    command = [postgres_client("pg_restore"), "--no-owner", "--schema-only", "--file=-", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our program
    # A failure is not reported here: the restore itself will fail in the same way.
    found = [
        match
        for line in done.stdout.splitlines()
        for match in (_GRANT.fullmatch(line), _DEFAULT_PRIVILEGES.fullmatch(line))
    ]
    roles = {role for match in found if match is not None for role in match.groups()} - {_PUBLIC}
    return {role[1:-1].replace('""', '"') if role.startswith('"') else role: role for role in roles}


def _run_script(reader: subprocess.Popen[bytes], writer: subprocess.Popen[bytes], before: bytes, after: bytes) -> bool:
    """Have `writer` execute the script of `reader` in one transaction, with `before` and `after` around it.

    Returns whether the whole script was passed on. Otherwise there is no COMMIT, and nothing is kept.
    """
    assert reader.stdout is not None
    assert writer.stdin is not None
    is_complete = False
    try:
        writer.stdin.write(b"BEGIN;\n" + before)
        copy_script(reader.stdout, writer.stdin)
        is_complete = reader.wait() == 0
        writer.stdin.write(after + b"COMMIT;\n" if is_complete else b"")
        writer.stdin.flush()
    except BrokenPipeError:
        is_complete = False  # psql has ended early. Its standard error says why.
    except BaseException:
        writer.kill()
        raise
    finally:
        reader.kill()
        with suppress(BrokenPipeError):
            writer.stdin.close()
    return is_complete


def copy_script(script: IO[bytes], to: IO[bytes]) -> None:
    """Copy the script of pg_restore, changed to what every supported server understands."""
    for line in script:
        if line == _TIMEOUT:
            to.write(_TIMEOUT_IF_KNOWN)
            break
        to.write(line)
    shutil.copyfileobj(script, to, CHUNK_BYTES)
