"""Sounds the alarm when the log's own time runs ahead of the database's clock.

A lane's time never goes back: once the clock was ahead while something was appended, all that follows in the lane bears that time,
until the clock gets there. History by time answers wrongly for as long.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from psycopg_pool import AsyncConnectionPool

from events.patience import run
from workers.enduring import enduring
from workers.sql import OPERATIONS

_LANES_AHEAD = OPERATIONS["lanes_ahead"]

#: Clocks of a primary and the standby that takes over from it differ by less.
AHEAD_S_MIN = 5.0

#: How often the lanes are looked at, and complained about.
LOOK_S = 60.0

_log = structlog.get_logger(__name__)


async def watch_lane_times(pool: AsyncConnectionPool) -> NoReturn:
    """Look for ever."""
    while True:
        async with enduring("lane_times", recover_s=LOOK_S):
            ahead = await run(pool, _LANES_AHEAD, (AHEAD_S_MIN,))
            if ahead:
                lane, ahead_s = ahead[0]
                hint = "the database's clock was ahead: until it gets there, what is recorded in these lanes bears a wrong time"
                _log.error("lane_of_the_future", lane=lane, ahead_s=round(ahead_s, 1), lanes=len(ahead), hint=hint)
            await asyncio.sleep(LOOK_S)
