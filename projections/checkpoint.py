"""Checkpoints: how far each follower of the log is in each lane. They are moved by whoever has leased them, in the transaction of what
was made of the events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import AsyncConnection, AsyncCursor

from events.sql import Statements

_SQL = Statements("projections", "checkpoint.sql")
UNSYNCED = _SQL["unsynced"]
_MOVE = _SQL["move"]
_PARK = _SQL["park"]

#: How long a parked lane rests before it is looked at, and complained about, again.
PARKED_S = 30.0


class Move(NamedTuple):
    """A leased checkpoint that goes from the number `before` to `after`."""

    follower: str
    lane: int
    before: int
    after: int


async def move(connection: AsyncConnection, moves: Sequence[Move]) -> AsyncCursor:
    """Move checkpoints, and unpark them; a row for each that was moved. Whoever asks for these waits for an answer."""
    columns = {
        "followers": [one.follower for one in moves],
        "lanes": [one.lane for one in moves],
        "before": [one.before for one in moves],
        "after": [one.after for one in moves],
    }
    return await connection.execute(_MOVE, columns, prepare=True)


async def park(connection: AsyncConnection, follower: str, lane: int, *, error: str) -> None:
    """Have a lane rest for `PARKED_S`, with the reason in its checkpoint."""
    await connection.execute(
        _PARK, {"follower": follower, "lane": lane, "pause_s": PARKED_S, "error": error}, prepare=True
    )
