"""The instances for which a relay that reads the log for the first time would send hints."""

from __future__ import annotations

from uuid import UUID

from psycopg import AsyncConnection

from events.exchange import exchange
from workers.relay import FOLLOWER, LOOK, lanes_of
from workers.sql import OPERATIONS


async def owed(connection: AsyncConnection) -> list[UUID]:
    """The instances to which something is owed. In a transaction that is open, the lanes stay leased until it ends."""
    await connection.execute(OPERATIONS["enter_lanes"], (FOLLOWER,))
    (rows,) = await exchange(connection, [LOOK])
    return [stream_id for lane in lanes_of(rows) for stream_id in lane.due]
