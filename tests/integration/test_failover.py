"""A standby that takes over: what was acknowledged, and what goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from events import shared
from tests.replicated import Replicated, asked
from tests.requests_to_log import open_store, requested
from tests.waiting import until

#: How many sessions wait for the standby to have what they commit.
COMMITTING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
async def replicated(tmp_path: Path) -> AsyncGenerator[Replicated]:
    async with Replicated.running(tmp_path) as pair:
        yield pair


async def test_no_append_is_acknowledged_that_the_standby_lacks(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LATE_S", 0.05)
    await replicated.synchronous()
    async with open_store(replicated.database_url) as (store, _):
        await requested(store, key="before")
        await replicated.cut_off()

        first = asyncio.create_task(requested(store, key="first"))
        await until(lambda: has(replicated, COMMITTING, 1))
        behind = [asyncio.create_task(requested(store, key=f"behind {number}")) for number in range(10)]
        answered, _ = await asyncio.wait([first, *behind], timeout=1)

        assert not answered
        assert await asked(replicated.second, "SELECT count(*) FROM event") == [(1,)]
        await replicated.reconnect()
        await asyncio.gather(first, *behind)
    assert await asked(replicated.second, "SELECT count(*) FROM event") == [(12,)]


async def has(replicated: Replicated, statement: str, count: int) -> bool:
    return await asked(replicated.first, statement) == [(count,)]
