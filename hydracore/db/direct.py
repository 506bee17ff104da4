"""Tells whether a connection leads to PostgreSQL itself or to a pooler in transaction mode.

Such a pooler runs each transaction in any of its sessions, so that a session's lock would stay in a
session that others use.
"""

from __future__ import annotations

import psycopg

from hydracore.db.error_text import one_line
from hydracore.db.readiness import DatabaseUnreachable, DatabaseUnusable
from hydracore.settings import Settings


class NotDirect(DatabaseUnusable):
    """The URL leads to a pooler in transaction mode."""

    def __init__(self) -> None:
        super().__init__(
            "HYDRACORE_DATABASE_URL leads to a pooler in transaction mode, but this needs a direct connection: set it to the "
            "URL of PostgreSQL itself"
        )


async def require_direct(settings: Settings, conninfo: str) -> None:
    """Raise `NotDirect` behind a pooler in transaction mode, and `DatabaseUnreachable` if nothing answers.

    `database_prepared` must be false behind such a pooler. Where it is true, nothing is checked.
    """
    if settings.database_prepared:
        return
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None
        ) as connection:
            # When a client connects, a pooler gives a process id of its own making, not that of a server process.
            row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
            is_direct = row == (connection.info.backend_pid,)
    except psycopg.Error as error:
        # libpq's texts name host, port and user, never the password.
        raise DatabaseUnreachable(one_line(error)) from error
    if not is_direct:
        raise NotDirect
