"""Followers and builds report by its place what is missing in the log, or what they cannot apply."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import psycopg
import pytest

from events import types as e
from events.errors import LogCorrupted
from events.exchange import Statement
from events.ids import lane_of
from projections import operations
from projections.activity import Activity
from projections.definition import Projection
from projections.errors import EventRefused, NotToBeSkipped
from projections.fact import Fact, Read
from projections.fleet import Fleet
from projections.follower import Follower
from projections.instance import InstanceFold, InstanceProjection
from projections.rebuild import rollback
from projections.usage_daily import UsageDaily, UsageFold
from tests import lifecycle
from tests.parked_lanes import interventions
from tests.rebuilding import dry_run_here, follow_all, rebuild_here, write_instances
from tests.store_commands import create_instance, open_store, origin

#: Damage to a lane, and what is then reported about its third event.
DAMAGE = {
    "DELETE FROM event WHERE lane = %s AND seq = 3": "the next event is 4",
    "DELETE FROM event WHERE lane = %s AND seq >= 3": "there is no such event, or not its command, and the head is 4",
    "DELETE FROM command WHERE lane = %s AND first_seq = 3": "the next event is 4",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_only_the_lane_with_a_missing_event_or_command_is_parked_right_before_it(
    database_url: str, owner_conn: psycopg.AsyncConnection, damage: str
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = [await create_instance(store, customer_id=f"customer-{number}") for number in range(4)]
        for instance_id in ids:
            for name in ("Ada", "Bob", "Eve"):
                await store.execute(instance_id, lifecycle.configure(agent_name=name), origin())
        lanes = {lane_of(instance_id) for instance_id in ids}
        assert len(lanes) == len(ids), "each has a lane of its own"
        damaged = lane_of(ids[0])
        await owner_conn.execute(damage.encode(), (damaged,))

        await follow_all(pool)

    found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}
    for name in ("usage_daily", "fleet", "activity"):
        (parked,) = found[name].parked
        assert (parked.lane, parked.seq) == (damaged, 2)
        assert parked.error == f"Lane {damaged} at 3: {DAMAGE[damage]}"
        assert [lane.lane for lane in found[name].lanes if lane.behind] == [damaged]
    # The events before it were applied.
    cursor = await owner_conn.execute("SELECT lane, sum(events)::int FROM activity GROUP BY lane ORDER BY lane")
    assert dict(await cursor.fetchall()) == dict.fromkeys(lanes, 4) | {damaged: 2}


async def test_a_build_fails_at_an_event_whose_command_is_missing(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_instances(store, count=4)
        await follow_all(pool)
    lane = lane_of(ids[2])
    await owner_conn.execute("DELETE FROM command WHERE lane = %s AND first_seq = 2", (lane,))

    with pytest.raises(LogCorrupted, match=f"Lane {lane} at 2: its command is missing"):
        await rebuild_here(database_url, Activity())


@pytest.mark.parametrize("damage", ["DELETE FROM event WHERE version = 1", "DELETE FROM event WHERE version = 2"])
async def test_a_rollback_that_catches_up_fails_at_a_missing_event(
    database_url: str, owner_conn: psycopg.AsyncConnection, damage: str
) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id = await create_instance(store)
        await follow_all(pool)
        for projection in (InstanceProjection(), Fleet()):
            await rebuild_here(database_url, projection)
        await store.execute(instance_id, lifecycle.configure(agent_name="Eve"), origin())
        await follow_all(pool)
    await owner_conn.execute(damage.encode())

    with pytest.raises(LogCorrupted, match=f"Lane {lane_of(instance_id)} at 2: 0 events"):
        await rollback(database_url, InstanceProjection())
    if damage.endswith("2"):
        with pytest.raises(LogCorrupted, match=f"Lane {lane_of(instance_id)} at 2: there is no such event"):
            await rollback(database_url, Fleet())


class Fussy(InstanceProjection):
    """Cannot apply changes of the configuration."""

    def begin(self, stream_id: UUID, *, lane: int) -> InstanceFold:
        return FussyFold(stream_id, lane=lane)


class FussyFold(InstanceFold):
    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        if any(isinstance(event, e.ConfigChanged) for event in events):
            raise ValueError("what the event says")
        super().feed(events)


class FussyUsage(UsageDaily):
    """Cannot apply one instance's usage."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if any(fact.stream_id == self._refused for fact in facts):
            raise ValueError("what the event says")
        return await super().changes(read, facts)


async def test_a_rollback_names_the_place_of_an_event_it_cannot_apply_but_not_its_content(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = await write_instances(store, count=8)
        await follow_all(pool)
        refused = ids[2]
        for projection in (InstanceProjection(), UsageDaily()):
            await rebuild_here(database_url, projection)
        await store.execute(refused, lifecycle.configure(agent_name="Eve"), origin())
        await write_instances(store, count=8, start=8)
        for instance_id in (ids[2], ids[6]):
            await store.execute(instance_id, lifecycle.usage(2), origin("agent:x"))
        await Follower(pool, UsageDaily()).catch_up()

    for projection in (Fussy(), FussyUsage(refused)):
        with pytest.raises(EventRefused) as caught:
            await rollback(database_url, projection)
        lane = lane_of(refused)
        what = f"an event of {refused} in lane {lane}"
        if projection.name == "usage_daily":
            what = f"event {caught.value.seq} of lane {lane} (usage_recorded of {refused})"
            place = "SELECT stream_id, type FROM event WHERE lane = %s AND seq = %s"
            row = await (await owner_conn.execute(place, (lane, caught.value.seq))).fetchone()
            assert row == (refused, "usage_recorded")
        assert str(caught.value) == f"{projection.name} cannot apply {what}: ValueError"


class FussyUsageFold(UsageFold):
    """Cannot apply the second batch of an instance."""

    def feed(self, facts: Sequence[Fact]) -> None:
        if any(isinstance(fact.event, e.UsageRecorded) and fact.event.seq == 2 for fact in facts):
            raise ValueError("what the event says")
        super().feed(facts)


class UsageDailyV2(UsageDaily):
    version = 2


class FussyUsageV2(UsageDailyV2):
    def begin(self) -> FussyUsageFold:
        return FussyUsageFold()


async def used_twice(database_url: str) -> UUID:
    """One of several instances, with two batches of usage, which are followed: events 2 and 4 of its lane."""
    async with open_store(database_url) as (store, pool):
        instance_id, *_ = [await create_instance(store, customer_id=f"customer-{number}") for number in range(3)]
        await store.execute(instance_id, lifecycle.usage(1), origin("agent:x"))
        await store.execute(instance_id, lifecycle.configure(agent_name="Eve"), origin())
        await store.execute(instance_id, lifecycle.usage(2), origin("agent:x"))
        await follow_all(pool)
    return instance_id


@pytest.mark.parametrize("projection", [Fussy(), FussyUsageV2()])
async def test_a_rebuild_names_the_place_of_an_event_it_cannot_apply_but_not_its_content(
    database_url: str, projection: Projection
) -> None:
    refused = await used_twice(database_url)

    with pytest.raises(EventRefused) as caught:
        await rebuild_here(database_url, projection)

    what = {
        "instance": f"an event of {refused} in lane {lane_of(refused)}",
        "usage_daily": f"event 4 of lane {lane_of(refused)} (usage_recorded of {refused})",
    }
    assert str(caught.value) == f"{projection.name} cannot apply {what[projection.name]}: ValueError"


async def test_an_operator_can_skip_an_event_that_the_build_of_a_new_version_cannot_apply(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    refused = await used_twice(database_url)
    lane, by = lane_of(refused), operations.Author("operator:eve", "ticket 7")

    async def skip(seq: int, *, version: int = 2) -> operations.Intervention:
        return await operations.skip_in_build(owner_conn, "usage_daily", lane, seq, by, version=version)

    with pytest.raises(NotToBeSkipped, match="it has no unfinished build"):
        await skip(4)
    with pytest.raises(EventRefused):
        await rebuild_here(database_url, FussyUsageV2())
    with pytest.raises(NotToBeSkipped, match="it has no unfinished build"):
        await skip(4, version=1)
    with pytest.raises(NotToBeSkipped, match=f"lane {lane} ends with event 4"):
        await skip(5)
    done = await skip(4)
    report = await rebuild_here(database_url, FussyUsageV2(), accept_drift=True)

    assert (done.version, done.lane, done.seq, done.action, done.error) == (2, lane, 4, "skip", "")
    # The live version had applied it.
    assert (report.resumed, report.version, report.drifted) == (True, 2, 1)
    assert (report.drift[0].live or {})["requests"] == 2
    assert (await dry_run_here(database_url, FussyUsageV2())).drifted == 0
    assert await interventions(owner_conn, "usage_daily") == [done]


async def test_a_skip_that_was_revoked_can_be_made_again_in_the_next_build(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    refused = await used_twice(database_url)
    lane, by = lane_of(refused), operations.Author("operator:eve", "ticket 7")
    with pytest.raises(EventRefused):
        await rebuild_here(database_url, FussyUsageV2())
    await operations.skip_in_build(owner_conn, "usage_daily", lane, 4, by, version=2)
    await rebuild_here(database_url, FussyUsageV2(), accept_drift=True)
    await operations.unskip(owner_conn, "usage_daily", lane, 4, by)
    with pytest.raises(EventRefused):
        await rebuild_here(database_url, FussyUsageV2())

    await operations.skip_in_build(owner_conn, "usage_daily", lane, 4, by, version=2)

    assert (await rebuild_here(database_url, FussyUsageV2())).drifted == 0


async def test_an_event_that_a_build_has_already_applied_cannot_be_skipped_in_it(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    refused = await used_twice(database_url)
    by = operations.Author("operator:eve", "ticket 7")
    await owner_conn.execute("UPDATE usage_daily SET requests = 99")
    assert (await rebuild_here(database_url, UsageDailyV2())).stopped_s is None

    with pytest.raises(NotToBeSkipped, match=f"the build has already applied event 4 of lane {lane_of(refused)}"):
        await operations.skip_in_build(owner_conn, "usage_daily", lane_of(refused), 4, by, version=2)


async def test_a_rollback_that_folds_a_stream_anew_fails_at_a_hole_in_its_middle(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        instance_id = await create_instance(store)
        for name in ("Ada", "Eve"):
            await store.execute(instance_id, lifecycle.configure(agent_name=name), origin())
        await rebuild_here(database_url, InstanceProjection())
        await store.execute(instance_id, lifecycle.configure(agent_name="Joe"), origin())
    await owner_conn.execute("DELETE FROM event WHERE version = 2")

    with pytest.raises(LogCorrupted, match=f"2 events of {instance_id} after its version 0 where 3 must be"):
        await rollback(database_url, InstanceProjection())
