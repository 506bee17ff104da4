"""A connection on which statements are exchanged, and statements for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from psycopg import AsyncConnection

from events.exchange import Statement

NUMBERS = Statement(b"SELECT n, n::text || 'x' FROM generate_series(1, $1::integer) AS n ORDER BY n", (b"2",))
ADD = b"INSERT INTO noted (word) VALUES ($1)"
#: How each answer ends.
READY = b"Z\0\0\0\5I"
#: Waits as long as another session has the lock.
WAIT = Statement(b"SELECT pg_advisory_xact_lock(1)", ())


@pytest.fixture(name="connection")
async def connection_fixture(database_url: str) -> AsyncGenerator[AsyncConnection]:
    async with await AsyncConnection.connect(database_url, autocommit=True) as opened:
        await opened.execute("CREATE TEMPORARY TABLE noted (word text CHECK (word <> 'bad'))")
        yield opened


async def noted_words(connection: AsyncConnection) -> list[str]:
    return [word for (word,) in await (await connection.execute("SELECT word FROM noted ORDER BY word")).fetchall()]
