"""Reads the heads of all lanes."""

from __future__ import annotations

from typing import Final

from psycopg import AsyncConnection

from events.sql import Statements

#: Rows of lane and head.
HEADS: Final = Statements("events", "store.sql")["heads"]


async def read_heads(connection: AsyncConnection) -> dict[int, int]:
    """The number of the last event of each lane, read in one snapshot."""
    return dict(await (await connection.execute(HEADS)).fetchall())
