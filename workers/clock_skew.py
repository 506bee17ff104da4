"""Raises an alarm if the times in the log are ahead of the database's clock.

The times in a lane never go back. If an event was appended while the clock was ahead, all later events of its lane get the same time,
until the clock has caught up. Until then, queries of the history by time give wrong answers.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from psycopg_pool import AsyncConnectionPool

from events.retries import run
from workers.error_boundary import error_boundary
from workers.sql import OPERATIONS

_LANES_AHEAD = OPERATIONS["lanes_ahead"]

#: The least lead that is reported, in seconds. The clocks of a primary and a standby that takes over from it differ by less.
AHEAD_S_MIN = 5.0

#: How often the lanes are checked, and the alarm is repeated.
CHECK_S = 60.0

_log = structlog.get_logger(__name__)


async def watch_clock_skew(pool: AsyncConnectionPool) -> NoReturn:
    """Check the lanes for ever."""
    while True:
        async with error_boundary("lane_times", recover_s=CHECK_S):
            ahead = await run(pool, _LANES_AHEAD, (AHEAD_S_MIN,))
            if ahead:
                lane, ahead_s = ahead[0]
                hint = "the database's clock was ahead; events in these lanes are recorded with a later time until the clock has caught up"
                _log.error("lane_of_the_future", lane=lane, ahead_s=round(ahead_s, 1), lanes=len(ahead), hint=hint)
            await asyncio.sleep(CHECK_S)
