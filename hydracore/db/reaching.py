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
from hydracore.db.complaints import one_line
from hydracore.db.hurried import HurriedConnection

#: How long to wait for a database that does not answer.
START_S_MAX: Final = 30.0
_PAUSE_S: Final = 0.5

#: SQLSTATE classes of errors that waiting does not cure: refused logins, and missing databases, rights and roles.
_HOPELESS_CLASSES: Final = frozenset({"22", "28", "3D", "42"})
#: The same errors by parts of their texts, because libpq gives no SQLSTATE where the server refuses a connection. With
#: any other text, and in another language, we wait: the server may be full or starting, or be a pooler whose server is.
_HOPELESS_WORDS: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

#: About the table of migrations: the current role, whether that role may read it, and whether any role
#: but its owner may. The last is so since the migration that lets all parts read it.
_LEDGER: Final = """
SELECT current_user,
       has_table_privilege(t.oid, 'SELECT'),
       EXISTS (SELECT FROM aclexplode(t.relacl) g WHERE g.grantee <> t.relowner AND g.privilege_type = 'SELECT')
  FROM pg_class t
 WHERE t.oid = to_regclass('migration')
"""
_APPLIED: Final = "SELECT name FROM migration ORDER BY name"

_log = structlog.get_logger(__name__)


class _Looking(HurriedConnection):
    """For the few short queries here: a server that does not answer them soon is stuck."""

    answer_s_max = 5.0


class DatabaseUnfit(Exception):
    """The database cannot be used. `str()` says why, in one line without secrets."""


class NotReached(DatabaseUnfit):
    """The database does not answer, or does not let us in."""


class NotOurs(DatabaseUnfit):
    """The database has no log of HydraCore: it is empty or another program's."""

    def __init__(self) -> None:
        super().__init__("this database has no HydraCore log: check HYDRACORE_DATABASE_URL")


class NotMigrated(DatabaseUnfit):
    """The database lacks migrations of this version.

    It may have newer ones: a newer version migrates beside older parts.

    `missing`: their names; empty where the database has no migrations at all.
    """

    def __init__(self, missing: Sequence[str] = ()) -> None:
        lacks = f" (missing: {', '.join(missing)})" if missing else ""
        super().__init__(f"the database is not migrated{lacks}: run hydracore db migrate")


class NotAllowed(DatabaseUnfit):
    """The login or its role lacks rights that this version needs. Nothing else is wrong with the database."""


async def reach(conninfo: str, *, role: str) -> None:
    """Repeat `look` while waiting may help, for `START_S_MAX` at most. Raises what `look` does."""
    clock = asyncio.get_running_loop().time
    give_up_at = clock() + START_S_MAX
    told = ""
    while True:
        try:
            return await look(conninfo, role=role)
        except NotReached as error:
            if _is_hopeless(error.__cause__) or clock() > give_up_at:
                raise
            if str(error) != told:
                told = str(error)
                _log.warning("database_not_reached", error=told, hint=f"retrying for at most {START_S_MAX:g} s")
        await asyncio.sleep(_PAUSE_S)


async def look(conninfo: str, *, role: str) -> None:
    """Connect once, as the login role, and act as `role` unless it is empty. Raises `DatabaseUnfit`."""
    async with _looking(conninfo) as connection:
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


async def look_for_ours(conninfo: str) -> None:
    """Connect once, and check that the database is HydraCore's, of this or an older release. Raises `DatabaseUnfit`."""
    async with _looking(conninfo) as connection:
        try:
            applied = await _applied(connection)
        except psycopg.errors.UndefinedColumn:
            raise NotOurs from None  # Many a program has a table of migrations.
        if migrations()[0][0] not in applied:
            raise NotOurs


@asynccontextmanager
async def _looking(conninfo: str) -> AsyncGenerator[_Looking]:
    try:
        async with await _Looking.connect(conninfo, autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        # libpq's texts name host, port and user, never the password.
        raise NotReached(one_line(error)) from error


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
    ledger = await (await connection.execute(_LEDGER)).fetchone()
    if ledger is None:
        return frozenset()
    role, may_read, others_may_read = ledger
    if not may_read and others_may_read:
        raise NotAllowed(
            f"{role} may not read the table migration: grant it the privileges of hydracore_app that it needs"
        )
    if not may_read:
        return frozenset()
    return frozenset(name for (name,) in await (await connection.execute(_APPLIED)).fetchall())


def _is_hopeless(error: BaseException | None) -> bool:
    """Whether waiting cannot help: the database answers and refuses this login, as with a wrong password."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in _HOPELESS_CLASSES
    return any(words in str(error) for words in _HOPELESS_WORDS)
