"""The first look at the database: whether it is there, lets us in, and has the shape that this version needs.

Parts that are started too early end, so that whoever started them sees it and starts them again: one that waited for a migration
would look as if it worked. Only for a database that is not there yet they wait a little, as for one that is just restarted.
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

#: How long a database that does not answer is waited for.
START_S_MAX: Final = 30.0
_PAUSE_S: Final = 0.5

#: Classes of SQLSTATE of what waiting does not mend: logins, databases, rights, and roles that there are not.
_HOPELESS_CLASSES: Final = frozenset({"22", "28", "3D", "42"})
#: The same in the words of a server that refuses to connect, of which libpq tells no SQLSTATE. One that speaks another language is
#: waited for. So is whatever else it says: it may be full, or starting, or a pooler whose server is.
_HOPELESS_WORDS: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

#: The table of migrations: as whom it is asked for, whether that role may read it, and whether any may but its owner, which is so from
#: the migration on that has all parts read it.
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
    """What a look asks is answered at once, or the server is stuck."""

    answer_s_max = 5.0


class DatabaseUnfit(Exception):
    """Nothing can be done on this database. `str()` is one line, which says why and has no secret."""


class NotReached(DatabaseUnfit):
    """It is not there, or does not let us in."""


class NotOurs(DatabaseUnfit):
    """It has no log: another program's, or none's."""

    def __init__(self) -> None:
        super().__init__("this database has no HydraCore log: check HYDRACORE_DATABASE_URL")


class NotMigrated(DatabaseUnfit):
    """It lacks migrations that this version has. More than that it may have: a newer version migrates beside older parts.

    `missing`: which, where it has others.
    """

    def __init__(self, missing: Sequence[str] = ()) -> None:
        lacks = f" (missing: {', '.join(missing)})" if missing else ""
        super().__init__(f"the database is not migrated{lacks}: run hydracore db migrate")


class NotAllowed(DatabaseUnfit):
    """It is as it must be, and whoever connects has not been granted all that this version needs."""


async def reach(conninfo: str, *, role: str) -> None:
    """`look`, and wait where that may help, for `START_S_MAX` at most. Raises what `look` does."""
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
            # For the transaction alone: a pooler may give the session to somebody else.
            async with connection.transaction():
                if role:
                    await connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                await require_migrated(connection)
        except psycopg.DatabaseError as error:
            if not connection.closed:
                # There is no such role before the first migration of a cluster.
                await require_migrated(connection)
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                login = connection.info.user
                raise NotAllowed(
                    f"{login} may not act as {role}: as an administrator, run GRANT {role} TO {login}"
                ) from None
            raise


async def look_for_ours(conninfo: str) -> None:
    """Connect once, and see that the database is one of ours, if only of an older release. Raises `DatabaseUnfit`."""
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
    """Raises `NotMigrated` and `NotAllowed`."""
    applied = await _applied(connection)
    missing = [name for name, _ in migrations() if name not in applied]
    if missing:
        raise NotMigrated(missing if applied else ())


async def _applied(connection: AsyncConnection) -> frozenset[str]:
    """The migrations that the database has, as far as we may see them. Raises `NotAllowed`."""
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
    """Whether it is there and lets nobody in who comes like this: a password does not come right by waiting."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate[:2] in _HOPELESS_CLASSES
    return any(words in str(error) for words in _HOPELESS_WORDS)
