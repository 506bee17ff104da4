"""Health as judged by heartbeats and their absence: it improves only when a heartbeat was received."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

import psycopg
import pytest

from events.ids import lane_of
from events.retries import run
from events.types import Health
from tests import lifecycle
from tests.stack import Stack
from workers.deps import Deps
from workers.health import check_health
from workers.reconciler import HEALTH_MAX
from workers.sql import OPERATIONS

ADA = lifecycle.instance_id()
RUNNING = (
    *(
        lifecycle.request(),
        lifecycle.plan(),
        lifecycle.created(),
        lifecycle.enrol(),
        lifecycle.issue(),
        lifecycle.acknowledge(),
    ),
    lifecycle.mark_ready(),
)


class Watched(NamedTuple):
    """A running instance whose database the test may change."""

    deps: Deps
    owner_conn: psycopg.AsyncConnection

    async def was_found(self, health: Health) -> None:
        for command in (*RUNNING, lifecycle.health(health)):
            await self.deps.store.execute(ADA, command, self.deps.origin(ADA))

    async def heard(self, *, ago_s: float) -> None:
        await self.owner_conn.execute(
            "INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)"
            " VALUES (%s, %s, now() - %s * interval '1 s', %s, '{}')"
            " ON CONFLICT (lane, instance_id) DO UPDATE SET received_at = excluded.received_at",
            (lane_of(ADA), ADA, ago_s, lifecycle.BOOT),
        )

    async def listening(self, *, since_s: float, until_s: float = 0) -> None:
        """Heartbeats could be received from so many seconds ago until so many seconds ago."""
        await self.owner_conn.execute(
            "INSERT INTO hearing (since, until) SELECT now() - %s * interval '1 s', now() - %s * interval '1 s'",
            (since_s, until_s),
        )

    async def checked(self) -> str | None:
        """The health after a search for changed instances and a check of this one, which must agree."""
        before = await self._health()
        settings = self.deps.settings
        limits = {"late_s": settings.heartbeat_late_s, "lost_s": settings.heartbeat_lost_s, "limit": HEALTH_MAX}
        found = await run(self.deps.pool, OPERATIONS["changed_health"], limits)
        await check_health(self.deps, ADA)
        after = await self._health()
        assert bool(found) == (before != after)
        return after

    async def _health(self) -> str | None:
        state = await self.deps.store.load(ADA)
        assert state is not None
        return state.health


@pytest.fixture
async def watched(stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection) -> AsyncGenerator[Watched]:
    limits = {"heartbeat_interval_s": "15", "heartbeat_late_s": "45", "heartbeat_lost_s": "90"}
    async with stack.deps(database_url=database_url, **limits) as deps:
        yield Watched(deps, owner_conn)


@pytest.mark.parametrize("found", ["late", "unreachable"])
async def test_an_outage_of_the_api_does_not_make_a_silent_agent_healthy(watched: Watched, found: Health) -> None:
    await watched.was_found(found)
    await watched.heard(ago_s=1000)
    await watched.listening(since_s=1)

    after_the_outage = await watched.checked()
    await watched.heard(ago_s=0)

    assert after_the_outage == found
    assert await watched.checked() == "healthy"


async def test_an_unreachable_agent_stays_unreachable_when_heartbeats_are_no_longer_received(watched: Watched) -> None:
    await watched.was_found("unreachable")
    await watched.heard(ago_s=100)
    await watched.listening(since_s=1000, until_s=16)

    assert await watched.checked() == "unreachable"


async def test_silence_is_counted_anew_after_an_outage_of_the_api(watched: Watched) -> None:
    await watched.was_found("late")
    await watched.heard(ago_s=1000)
    await watched.listening(since_s=91)

    assert await watched.checked() == "unreachable"


async def test_an_agent_whose_last_heartbeat_is_in_the_future_is_not_taken_for_healthy(watched: Watched) -> None:
    await watched.was_found("unreachable")
    await watched.heard(ago_s=-3600)

    assert await watched.checked() == "unreachable"


async def test_an_unreachable_agent_whose_latest_heartbeat_is_late_becomes_late(watched: Watched) -> None:
    await watched.was_found("unreachable")
    await watched.heard(ago_s=50)
    await watched.listening(since_s=1000)

    assert await watched.checked() == "late"


async def test_a_new_agent_is_healthy_then_late_then_unreachable_as_its_silence_grows(watched: Watched) -> None:
    for command in RUNNING:
        await watched.deps.store.execute(ADA, command, watched.deps.origin(ADA))
    await watched.listening(since_s=1000)

    found = list[str | None]()
    for ago_s in (0, 30, 60, 75, 120):
        await watched.heard(ago_s=ago_s)
        found.append(await watched.checked())

    assert found == ["healthy", "healthy", "late", "late", "unreachable"]


async def test_the_health_of_an_instance_being_deleted_is_not_updated(watched: Watched) -> None:
    await watched.was_found("late")
    await watched.heard(ago_s=1000)
    await watched.listening(since_s=1000)
    await watched.deps.store.execute(ADA, lifecycle.delete(), watched.deps.origin(ADA))

    assert await watched.checked() == "late"
