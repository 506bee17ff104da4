"""Keeps the parts of the relay running after errors: one failed look must not end the process, and with it the other parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg
import structlog
from redis.exceptions import RedisError

from events.errors import StoreUnavailable
from hydracore.db.error_text import one_line

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def error_boundary(part: str, *, recover_s: float) -> AsyncGenerator[None]:
    """Wraps one turn of a part that runs for ever: logs what the turn raises, and then pauses for `recover_s` seconds.

    `<part>_waits` is logged if PostgreSQL or Redis is unavailable, which passes by itself. `<part>_failed` needs an operator.
    Cancellations are passed on.
    """
    try:
        yield
    except (RedisError, StoreUnavailable) as error:
        _log.warning(f"{part}_waits", error=type(error).__name__, reason=one_line(error))
    except psycopg.Error as error:
        # Without the error's text, which may quote a row.
        _log.error(f"{part}_failed", error=type(error).__name__, sqlstate=error.sqlstate)
    except Exception:  # noqa: BLE001 - a bug
        _log.exception(f"{part}_failed")
    else:
        return
    await asyncio.sleep(recover_s)
