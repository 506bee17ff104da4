"""How far every lane has come."""

from __future__ import annotations

from typing import Final

from psycopg import AsyncConnection

from events.sql import Statements

#: The lane and the head of each.
HEADS: Final = Statements("events", "store.sql")["heads"]


async def read_heads(connection: AsyncConnection) -> dict[int, int]:
    """The number of the last event of every lane, all of them at one moment."""
    return dict(await (await connection.execute(HEADS)).fetchall())
