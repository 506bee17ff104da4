"""Says for how long heartbeats could be heard, so that nobody takes an outage of ours for the silence of an agent."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.errors import StoreUnavailable
from events.patience import patiently
from events.sql import Statements

_HEAR = Statements("hydracore.api", "agents.sql")["hear"]

#: Several times as often as a break would count as one (15 s, in the statement and in `silent_s`).
HEAR_S = 4.0

_log = structlog.get_logger(__name__)


async def keep_hearing(pool: AsyncConnectionPool) -> NoReturn:
    """Say so for as long as this process serves."""

    async def hear(connection: AsyncConnection) -> None:
        await connection.execute(_HEAR, prepare=True)

    while True:
        try:
            await patiently(pool, hear)
        except StoreUnavailable as error:
            _log.warning("heartbeats_not_heard", reason=str(error))
        except Exception:  # noqa: BLE001 - whoever stops saying so stops the clock of every agent's silence
            _log.exception("heartbeats_not_heard")
        await asyncio.sleep(HEAR_S)
