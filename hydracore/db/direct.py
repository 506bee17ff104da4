"""For whoever holds a lock of the session: a pooler in transaction mode would leave it with somebody else's."""

from __future__ import annotations

import psycopg

from hydracore.db.complaints import one_line
from hydracore.db.reaching import DatabaseUnfit, NotReached
from hydracore.settings import Settings


class NotDirect(DatabaseUnfit):
    """Between us and the server is a pooler."""

    def __init__(self) -> None:
        super().__init__(
            "HYDRACORE_DATABASE_URL leads to a pooler in transaction mode, as HYDRACORE_DATABASE_PREPARED=false says, and this needs "
            "a session of its own: give it the URL of PostgreSQL itself"
        )


async def require_direct(settings: Settings, conninfo: str) -> None:
    """Raises `NotDirect` and `NotReached`. Behind a pooler that keeps sessions, or that nothing says so of, all is well."""
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
