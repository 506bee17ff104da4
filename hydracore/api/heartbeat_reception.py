"""Records since when the API can receive heartbeats, so that its own outage does not count as the silence of agents."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.errors import StoreUnavailable
from events.retries import with_retries
from events.sql import Statements

_RECORD = Statements("hydracore.api", "agents.sql")["record_reception"]

#: Seconds between two records. A break of 15 s counts as an outage (in the statement and in `silent_s`).
RECORD_INTERVAL_S = 4.0

_log = structlog.get_logger(__name__)


async def keep_recording(pool: AsyncConnectionPool) -> NoReturn:
    """Record every `RECORD_INTERVAL_S` that this process can receive heartbeats, until cancelled."""

    async def record(connection: AsyncConnection) -> None:
        await connection.execute(_RECORD, prepare=True)

    while True:
        try:
            await with_retries(pool, record)
        except StoreUnavailable as error:
            _log.warning("heartbeats_not_heard", reason=str(error))
        except Exception:  # noqa: BLE001 - if this task ended, no agent's silence would count any more
            _log.exception("heartbeats_not_heard")
        await asyncio.sleep(RECORD_INTERVAL_S)
