"""The workers' statements, and the one way to run them."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.patience import patiently
from events.sql import Statements

OPERATIONS = Statements("workers", "operations.sql")


async def run(pool: AsyncConnectionPool, statement: bytes, parameters: Any = None) -> list[Any]:
    """One statement on an autocommit connection, repeated while the database is away; its rows, if it has any."""

    async def work(connection: AsyncConnection) -> list[Any]:
        cursor = await connection.execute(statement, parameters, prepare=True)
        return await cursor.fetchall() if cursor.description else []

    return await patiently(pool, work)
