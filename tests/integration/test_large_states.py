"""Instances whose configuration is large: what is kept of many of them is bounded by bytes, too."""

from __future__ import annotations

import base64
import os
from uuid import UUID

import psycopg
import pytest

from bench.rebuild_log import Life, life_of, write_lives
from events import diagnosis, loading, pages
from events import types as e
from events.ids import lane_of
from events.types import Sealed
from hydracore.audit import history
from hydracore.audit.difference import difference
from hydracore.audit.historical_state import state_at
from hydracore.audit.history import EventFilter, tenant_entries
from hydracore.audit.verifying import Progress, Request, verify
from tests.memory import allocating_less_than
from tests.store_commands import NOW_MS, open_store

COUNT = 20
STATE_BYTES = 128 * 1024
TEXT = base64.b64encode(os.urandom(STATE_BYTES * 3 // 4)).decode()

#: The room that there is here, and what a few copies of it take, on their way from bytes to states.
ROOM_BYTES = 2 * STATE_BYTES
PEAK_BYTES_MAX = 10 * STATE_BYTES
assert PEAK_BYTES_MAX < COUNT * STATE_BYTES * 2 / 3


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", ROOM_BYTES)
    monkeypatch.setattr(loading, "STATES_BYTES_MAX", ROOM_BYTES)
    monkeypatch.setattr(history, "STATES_BYTES_MAX", ROOM_BYTES)
    monkeypatch.setattr(diagnosis, "EVENTS_PER_FETCH", 2)


def patch(number: int) -> list[e.AnyEvent]:
    return [e.PlatformConfigPatched(at_ms=NOW_MS, advanced=Sealed(f"v1.{number:06}{TEXT}"))]


async def test_the_bytes_of_states_that_stores_and_histories_keep_are_bounded(database_url: str) -> None:
    lives: dict[UUID, Life] = {}
    for number in range(COUNT):
        instance_id, (_, steps) = life_of(number)
        lives[instance_id] = ("acme", [*steps[:1], patch(number)])
    write_lives(database_url, [lives])

    async with open_store(database_url) as (store, pool):
        with allocating_less_than(PEAK_BYTES_MAX):
            for instance_id in lives:
                await store.load(instance_id)
        with allocating_less_than(PEAK_BYTES_MAX):
            walked = [
                entry.event async for entry in tenant_entries(pool, "acme", EventFilter(types=("consent_changed",)))
            ]
            count = 0
            async for _ in tenant_entries(pool, "acme", EventFilter()):
                count += 1

    assert walked == []
    assert count == sum(len(step) for _, steps in lives.values() for step in steps)


async def test_the_bytes_of_changes_that_differences_and_verifications_keep_are_bounded(database_url: str) -> None:
    instance_id, (tenant, steps) = life_of(5)
    write_lives(database_url, [{instance_id: (tenant, [*steps, *map(patch, range(COUNT))])}])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE command SET link = digest WHERE lane = %s", (lane_of(instance_id),))

    async with open_store(database_url) as (_, pool):
        end = await state_at(pool, instance_id)
        with allocating_less_than(PEAK_BYTES_MAX):
            found = await difference(pool, instance_id, start=None, end=end)
    with allocating_less_than(PEAK_BYTES_MAX):
        report = verify(Request(conninfo=database_url, lanes=(lane_of(instance_id),)), Progress())

    (changed,) = [steps for change, steps in found.changes if change.field == "config.advanced"]
    assert changed.count == COUNT
    assert [step.version for step in changed.last] == [end.state.version]
    assert "chain_broken" in {finding.kind for finding in report.findings}
