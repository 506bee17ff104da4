"""The instances for which a relay that reads the log for the first time would send hints."""

from __future__ import annotations

from uuid import UUID

from psycopg import AsyncConnection

from events.exchange import exchange
from workers.relay import FOLLOWER, LEASE_NEW_EVENTS, lanes_of
from workers.sql import OPERATIONS


async def due_instances(connection: AsyncConnection) -> list[UUID]:
    """The instances with new events that leave work to do. In an open transaction, the lanes stay leased until it ends."""
    await connection.execute(OPERATIONS["create_checkpoints"], (FOLLOWER,))
    (rows,) = await exchange(connection, [LEASE_NEW_EVENTS])
    return [stream_id for lane in lanes_of(rows) for stream_id in lane.due]
