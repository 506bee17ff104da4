"""Large events: a reader of many holds a page of limited bytes, and not as many events as a page of small ones has."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from bench.rebuild_log import life_of, write_lives
from events import commands as c
from events import pages
from events import types as e
from events.ids import lane_of
from events.types import Sealed
from hydracore.audit.exporting import Request as Export
from hydracore.audit.exporting import export
from hydracore.audit.historical_state import state_at
from hydracore.audit.history import EventFilter, instance_entries, tenant_entries
from hydracore.audit.verifying import Progress, Request, verify
from projections import spilling, stream_assembly
from projections.instance import InstanceProjection
from projections.rebuild import rollback
from tests.memory import allocating_less_than
from tests.rebuilding import dry_run_here, follow_all, rebuild_here
from tests.store_commands import NOW_MS, create_instance, open_store, origin

EXPORTED_AT = datetime(2026, 11, 26, tzinfo=UTC)

EVENTS = 40
EVENT_BYTES = 256 * 1024

#: A page here, so that a short log has many; and what a few copies of a page take, on their way from bytes to events.
PAGE_BYTES = 256 * 1024
PEAK_BYTES_MAX = 10 * PAGE_BYTES
assert PEAK_BYTES_MAX < EVENTS * EVENT_BYTES / 2

#: A text that does not compress, as sealed texts are; and one that compresses as well as anything can.
RANDOM = base64.b64encode(os.urandom(EVENT_BYTES * 3 // 4)).decode()
EVEN = "A" * EVENT_BYTES


@pytest.fixture(params=[RANDOM, EVEN], ids=["random", "even"])
def instance_id(request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """A running instance whose configuration was changed many times, in a log without read tables."""
    monkeypatch.setattr(pages, "PAGE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(stream_assembly, "HELD_BYTES_MAX", PAGE_BYTES)
    monkeypatch.setattr(spilling, "BUFFERED_BYTES_MAX", PAGE_BYTES)
    instance_id, (tenant, steps) = life_of(5)
    texts = [Sealed(f"v1.{number:06}{request.param}") for number in range(EVENTS)]
    patches: list[list[e.AnyEvent]] = [[e.PlatformConfigPatched(at_ms=NOW_MS, advanced=text)] for text in texts]
    write_lives(database_url, [{instance_id: (tenant, [*steps, *patches])}])
    return instance_id


async def test_a_history_of_large_events_is_read_a_page_at_a_time(database_url: str, instance_id: UUID) -> None:
    async with open_store(database_url) as (store, pool):
        with allocating_less_than(PEAK_BYTES_MAX):
            loaded = await store.load(instance_id)
            past = await state_at(pool, instance_id)
        with allocating_less_than(PEAK_BYTES_MAX):
            shown = [entry.record.version async for entry in instance_entries(pool, instance_id, EventFilter())]
        with allocating_less_than(PEAK_BYTES_MAX):
            tenant = [entry.record.version async for entry in tenant_entries(pool, past.state.tenant_id, EventFilter())]

    assert loaded == past.state
    assert shown == tenant == list(range(1, past.state.version + 1))


async def test_followers_rebuilds_verifications_and_exports_hold_one_page_of_large_events(
    database_url: str, instance_id: UUID, tmp_path: Path
) -> None:
    lane, file = lane_of(instance_id), tmp_path / "file"
    async with open_store(database_url) as (_, pool):
        with allocating_less_than(PEAK_BYTES_MAX):
            await follow_all(pool)
    with allocating_less_than(PEAK_BYTES_MAX):
        await rebuild_here(database_url, InstanceProjection(), accept_drift=True)
    with allocating_less_than(PEAK_BYTES_MAX):
        report = verify(Request(conninfo=database_url, lanes=(lane,)), Progress())
    with allocating_less_than(PEAK_BYTES_MAX):
        wanted = Export(conninfo=database_url, output=file, exported_at=EXPORTED_AT, instance_id=instance_id)
        exported = export(wanted, Progress())

    assert {found.table for found in report.findings} == {"provision_log", "reservation"}, "which were never filled"
    assert report.events == exported.events > EVENTS


async def test_a_rollback_catches_up_with_large_events_a_page_at_a_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", PAGE_BYTES)
    async with open_store(database_url) as (store, _):
        instance_id = await create_instance(store)
        for _ in range(2):
            await rebuild_here(database_url, InstanceProjection(), accept_drift=True)
        for number in range(EVENTS):
            text = Sealed(f"v1.{number:06}{RANDOM}")
            await store.execute(instance_id, c.PatchPlatformConfig(at_ms=NOW_MS, advanced=text), origin())

    with allocating_less_than(PEAK_BYTES_MAX):
        report = await rollback(database_url, InstanceProjection())

    assert report.events == EVENTS
    assert (await dry_run_here(database_url, InstanceProjection())).drifted == 0
