"""Whether a connection leads to PostgreSQL itself. A pooler in transaction mode gives each transaction any of its sessions, so that
a lock of the session would stay in one that others use.
"""

from __future__ import annotations

import psycopg

from hydracore.db.complaints import one_line
from hydracore.db.reaching import DatabaseUnfit, NotReached
from hydracore.settings import Settings


class NotDirect(DatabaseUnfit):
    """Between us and the server is a pooler."""

    def __init__(self) -> None:
        super().__init__(
            "HYDRACORE_DATABASE_URL leads to a pooler in transaction mode, but this needs a direct connection: set it to the "
            "URL of PostgreSQL itself"
        )


async def require_direct(settings: Settings, conninfo: str) -> None:
    """Raises `NotDirect` behind a pooler in transaction mode, and `NotReached`. Only where `database_prepared` is false, as it must be
    behind such a pooler, does this look for one."""
    if settings.database_prepared:
        return
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None
        ) as connection:
            # A pooler says of itself which process it is.
            row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
            is_direct = row == (connection.info.backend_pid,)
    except psycopg.Error as error:
        # libpq's texts name host, port and user, never the password.
        raise NotReached(one_line(error)) from error
    if not is_direct:
        raise NotDirect
