"""Checks whether the database answers, lets us in, and is migrated to this version.

A part that is started before the migration ends at once, so that its supervisor notices and starts it
again: if it waited, it would look as if it worked. It waits a little only for a database that does not
answer, which may just be restarting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import structlog
from psycopg import AsyncConnection, sql

from hydracore.db import migrations
from hydracore.db.answer_timeout import AnswerTimeoutConnection
from hydracore.db.error_text import one_line

#: How long to wait for a database that does not answer.
START_S_MAX: Final = 30.0
_PAUSE_S: Final = 0.5

#: SQLSTATE classes of errors that waiting does not solve: refused logins, and missing databases, rights and roles.
_PERMANENT_CLASSES: Final = frozenset({"22", "28", "3D", "42"})
#: The same errors by parts of their texts, because libpq gives no SQLSTATE where the server refuses a connection. With
#: any other text, and in another language, we wait: the server may be full or starting, or be a pooler whose server is.
_PERMANENT_TEXTS: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

#: About the table of migrations: the current role, whether that role may read it, and whether any role
#: but its owner may. The last is so since the migration that lets all parts read it.
_MIGRATION_TABLE: Final = """
SELECT current_user,
       has_table_privilege(t.oid, 'SELECT'),
       EXISTS (SELECT FROM aclexplode(t.relacl) g WHERE g.grantee <> t.relowner AND g.privilege_type = 'SELECT')
  FROM pg_class t
 WHERE t.oid = to_regclass('migration')
"""
_APPLIED: Final = "SELECT name FROM migration ORDER BY name"

_log = structlog.get_logger(__name__)


class _CheckConnection(AnswerTimeoutConnection):
    """A connection for the few short queries here, which a working server answers within seconds."""

    answer_s_max = 5.0


class DatabaseUnusable(Exception):
    """The database cannot be used. `str()` says why, in one line without secrets."""


class DatabaseUnreachable(DatabaseUnusable):
    """The database does not answer, or does not let us in."""


class NotHydraCore(DatabaseUnusable):
    """The database has no log of HydraCore: it is empty or another program's."""

    def __init__(self) -> None:
        super().__init__("this database has no HydraCore log: check HYDRACORE_DATABASE_URL")


class NotMigrated(DatabaseUnusable):
    """The database lacks migrations of this version.

    It may have newer ones: a newer version migrates beside older parts.

    `missing`: their names; empty where the database has no migrations at all.
    """

    def __init__(self, missing: Sequence[str] = ()) -> None:
        lacks = f" (missing: {', '.join(missing)})" if missing else ""
        super().__init__(f"the database is not migrated{lacks}: run hydracore db migrate")


class NotAllowed(DatabaseUnusable):
    """The login or its role lacks rights that this version needs. Nothing else is wrong with the database."""


async def wait_until_ready(conninfo: str, *, role: str) -> None:
    """Repeat `check_ready` while waiting may help, for `START_S_MAX` at most. Raises what `check_ready` does."""
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + START_S_MAX
    logged = ""
    while True:
        try:
            return await check_ready(conninfo, role=role)
        except DatabaseUnreachable as error:
            if _is_permanent(error.__cause__) or clock() > give_up_at:
                raise
            if str(error) != logged:
                logged = str(error)
                _log.warning("database_not_reached", error=logged, hint=f"retrying for at most {START_S_MAX:g} s")
        await asyncio.sleep(_PAUSE_S)


async def check_ready(conninfo: str, *, role: str) -> None:
    """Connect once, as the login role, and check the migrations as `role` unless it is empty.

    Raises `DatabaseUnusable`.
    """
    async with _connected(conninfo) as connection:
        try:
            # For this transaction only: a pooler may give the session to another client afterwards.
            async with connection.transaction():
                if role:
                    await connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                await require_migrated(connection)
        except psycopg.DatabaseError as error:
            if not connection.closed:
                # Before the first migration of a cluster the role is missing: then say that, rather than
                # complain of the role.
                await require_migrated(connection)
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                login = connection.info.user
                raise NotAllowed(
                    f"{login} may not act as {role}: as an administrator, run GRANT {role} TO {login}"
                ) from None
            raise


async def check_is_hydracore(conninfo: str) -> None:
    """Connect once, and check that the database is HydraCore's, of this or an older release.

    Raises `DatabaseUnusable`.
    """
    async with _connected(conninfo) as connection:
        try:
            applied = await _applied(connection)
        except psycopg.errors.UndefinedColumn:
            raise NotHydraCore from None  # Other programs have a table `migration` too.
        if migrations()[0][0] not in applied:
            raise NotHydraCore


@asynccontextmanager
async def _connected(conninfo: str) -> AsyncGenerator[_CheckConnection]:
    try:
        async with await _CheckConnection.connect(conninfo, autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        # libpq's texts name host, port and user, never the password.
        raise DatabaseUnreachable(one_line(error)) from error


async def require_migrated(connection: AsyncConnection) -> None:
    """Raise `NotMigrated` where a migration of this version is missing, and `NotAllowed`."""
    applied = await _applied(connection)
    missing = [name for name, _ in migrations() if name not in applied]
    if missing:
        raise NotMigrated(missing if applied else ())


async def _applied(connection: AsyncConnection) -> frozenset[str]:
    """The names of the applied migrations; none where the table is missing, or only its owner may read it yet.

    Raises `NotAllowed` where other roles than the owner may read it, but not ours.
    """
    row = await (await connection.execute(_MIGRATION_TABLE)).fetchone()
    if row is None:
        return frozenset()
    role, may_read, others_may_read = row
    if not may_read and others_may_read:
        raise NotAllowed(
            f"{role} may not read the table migration: grant it the privileges of hydracore_app that it needs"
        )
    if not may_read:
        return frozenset()
    return frozenset(name for (name,) in await (await connection.execute(_APPLIED)).fetchall())


def _is_permanent(error: BaseException | None) -> bool:
    """Whether waiting cannot help: the database answers and refuses this login, as with a wrong password."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in _PERMANENT_CLASSES
    return any(words in str(error) for words in _PERMANENT_TEXTS)
