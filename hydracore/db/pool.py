"""The connection pool of every part: autocommit connections that act as the app's role."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from events.cancellation import preserve_cancellation
from hydracore.db import readiness
from hydracore.db.answer_timeout import AnswerTimeoutConnection
from hydracore.signals import run_to_completion

#: How long an opening pool waits for its first connections, and a caller for a free one.
OPEN_TIMEOUT_S = 10.0
BORROW_TIMEOUT_S = 10.0

#: libpq's parameters unless the URL sets them: give up connecting to a server that does not answer in time, and notice
#: within half a minute that a server's machine is gone. A statement would otherwise wait for the kernel's two hours.
_TIMEOUTS = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",  # milliseconds
}

#: Options of sessions that act as a role (behind a pooler, none does). The server ends such a session
#: when its client is gone, even while the session waits for a lock, and notices within half a minute
#: that the client's machine is gone. The URL may set other values.
DEAD_CLIENT_OPTIONS = (
    "-c client_connection_check_interval=2000"
    " -c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)

#: Options that our code relies on, whatever the defaults of the database or the role are. Read committed: an append
#: reads where its lane ends once it has the lane's lock, and must see what others committed while it waited, or it
#: would use their numbers again. The other options set how sent values are parsed. `hydracore.db` sets how dates are
#: returned.
REQUIRED_OPTIONS = (
    r"-c default_transaction_isolation=read\ committed"
    " -c array_nulls=on -c standard_conforming_strings=on"
)


def conninfo(database_url: str, *, role: str, application: str) -> str:
    """`database_url` with the role to act as (empty: the login role itself) and a name that shows in pg_stat_activity.

    Its encoding is UTF-8, whatever the URL or the environment says: digests are taken over the bytes that are sent.
    """
    given = conninfo_to_dict(database_url)
    options = str(given.get("options") or "")
    if role:
        options = " ".join(filter(None, (REQUIRED_OPTIONS, options, f"-c role={role}")))
    fixed = {"application_name": application, "options": options, "client_encoding": "UTF8"}
    return make_conninfo(database_url, **{**_TIMEOUTS, **given, **fixed})


def check_database(database_url: str, *, role: str, application: str) -> None:
    """Check the database once, without waiting for it, for commands. Raises `DatabaseUnusable`.

    Call it in a thread without an event loop.
    """
    run_to_completion(readiness.check_ready(conninfo(database_url, role="", application=application), role=role))


@asynccontextmanager
async def open_pool(
    database_url: str,
    *,
    role: str,
    application: str,
    size: int,
    prepared: bool = True,
    with_answer_timeout: bool = False,
) -> AsyncGenerator[AsyncConnectionPool]:
    """An open pool of up to `size` autocommit connections, closed at the end. Borrow through `events.retries`.

    `prepared`: whether statements may stay prepared on the server. `with_answer_timeout`: whether a connection is
    closed when the server does not answer in time (`AnswerTimeoutConnection`). This is for processes whose callers
    wait for them, and which run no long statements. Raises `DatabaseUnusable` where the database cannot be reached, or is not migrated.
    """
    await readiness.wait_until_ready(conninfo(database_url, role="", application=application), role=role)
    acting = conninfo(database_url, role=role, application=application)
    if role:
        acting = make_conninfo(acting, options=f"{DEAD_CLIENT_OPTIONS} {conninfo_to_dict(acting)['options']}")
    pool: AsyncConnectionPool = AsyncConnectionPool(
        acting,
        connection_class=AnswerTimeoutConnection if with_answer_timeout else psycopg.AsyncConnection,
        min_size=1,
        max_size=size,
        open=False,
        kwargs={"autocommit": True} if prepared else {"autocommit": True, "prepare_threshold": None},
        timeout=BORROW_TIMEOUT_S,
        # The pool tries to reconnect with growing pauses for this long. After that, the next caller
        # makes it start again. With a longer timeout the pauses would grow so much that after an outage
        # of half a minute the pool would wait for another half before it reconnects.
        reconnect_timeout=BORROW_TIMEOUT_S,
        name=application,
    )
    await pool.open()
    try:
        try:
            with preserve_cancellation():
                await pool.wait(OPEN_TIMEOUT_S)
        except PoolTimeout:
            raise readiness.DatabaseUnreachable("the database cannot be reached any more") from None
        yield pool
    finally:
        await pool.close()
