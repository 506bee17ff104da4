"""The relay's parts live through whatever a turn of theirs fails with: one bad look must not end the process, and the others with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
import structlog
from redis.exceptions import RedisError

from events.errors import StoreUnavailable
from hydracore.db.complaints import one_line

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def enduring(part: str, *, recover_s: float) -> AsyncGenerator[None]:
    """Around one turn of a part that goes on for ever: what the turn fails with is logged, and the part pauses.

    `<part>_waits` passes once PostgreSQL or Redis is back; `<part>_failed` wants somebody. A cancellation goes through.
    """
    try:
        yield
    except (RedisError, StoreUnavailable) as error:
        _log.warning(f"{part}_waits", error=type(error).__name__, reason=one_line(error))
    except psycopg.Error as error:
        # Not what it says, which may be of what is in a row.
        _log.error(f"{part}_failed", error=type(error).__name__, sqlstate=error.sqlstate)
    except Exception:  # noqa: BLE001 - a bug
        _log.exception(f"{part}_failed")
    else:
        return
    await asyncio.sleep(recover_s)
