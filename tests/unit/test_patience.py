"""How long work on a database is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from events.errors import StoreUnavailable
from events.patience import patiently

PATIENCE_S = 0.3


class Exhausted:
    """A pool whose only connection breaks, and which has none to lend after that."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncGenerator[AsyncConnection]:  # noqa: ASYNC109 - as a pool has it
        assert timeout is not None
        self.asked_s.append(timeout)
        if len(self.asked_s) == 1:
            yield cast("AsyncConnection", None)
        await asyncio.sleep(timeout)
        raise PoolTimeout

    async def check(self) -> None:
        pass


async def test_a_connection_is_waited_for_no_longer_than_patience_lasts() -> None:
    pool = Exhausted()

    async def work(_connection: AsyncConnection) -> None:
        await asyncio.sleep(PATIENCE_S / 2)
        raise psycopg.OperationalError

    with pytest.raises(StoreUnavailable, match="does not answer"):
        await patiently(pool, work, patience_s=PATIENCE_S)

    first, *later = pool.asked_s
    assert first <= PATIENCE_S
    assert later
    assert max(later) <= PATIENCE_S / 2
