"""A followed projection that cannot process an event: its lane is parked right before that event, and nothing else stops."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from events.exchange import Statement, exchange
from events.ids import lane_of
from hydracore.db.pool import open_pool
from projections import checkpoint
from projections.activity import Activity
from projections.fact import Fact, Read
from projections.fleet import Fleet
from projections.follower import Follower
from projections.usage_daily import UsageDaily
from projections.usage_queries import usage_report
from tests.rebuilding import dry_run_here, write_instances
from tests.store_commands import create_instance, open_store
from tests.usage_recorded import LAST_DAY, lane_backlogs, record_usage, usage_entry


class Broken(UsageDaily):
    """Makes the database itself refuse one instance's events."""

    def __init__(self, refused: UUID, statement: str) -> None:
        self._refused = refused
        self._statement = statement

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        changes = await super().changes(read, facts)
        refused = any(fact.stream_id == self._refused for fact in facts)
        return [*changes, Statement(self._statement.encode(), ())] if refused else changes


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1 / 0", "DivisionByZero"),
        # As for a row that is too large for an index: an operational error that happens every time.
        ("DO $$ BEGIN RAISE EXCEPTION 'too long' USING ERRCODE = '54000'; END $$", "ProgramLimitExceeded"),
    ],
)
async def test_a_parked_projection_does_not_stop_other_projections(
    database_url: str, statement: str, error: str
) -> None:
    following = open_pool(database_url, role="hydracore_app", application="following", size=2)
    async with open_store(database_url) as (store, pool), following as both:
        ids = [await create_instance(store, customer_id=f"customer-{n}") for n in range(10)]
        for instance_id in ids:
            await record_usage(store, instance_id, instance_id, 1, usage_entry())
        await write_instances(store, count=4)
        # Where psycopg has prepared a statement itself, its rollback deallocates all prepared statements. So on both connections: a
        # batch that fails is retried in parts on the other connection.
        async with both.connection() as one, both.connection() as other:
            for connection in (one, other):
                await exchange(connection, [checkpoint.move([])])
                await connection.execute("SELECT 1", prepare=True)
        follower = Follower(both, Broken(ids[0], statement), Fleet(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        parked = {
            lane: error for lane, (_, error) in (await lane_backlogs(pool, "usage_daily")).items() if error is not None
        }
        assert parked == {ids[0].bytes[15] & 63: f"{error} (usage_recorded)"}
        for name in ("fleet", "activity"):
            assert set((await lane_backlogs(pool, name)).values()) == {(0, None)}
    for projection in (Fleet(), Activity()):
        assert (await dry_run_here(database_url, projection)).drifted == 0


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("UPDATE event SET schema_version = 99 WHERE type = 'usage_recorded'", "EventUnreadable"),
        (
            """UPDATE event SET payload = '{"type": "usage_recorded"}' WHERE type = 'usage_recorded'""",
            "ValidationError",
        ),
    ],
    ids=["of a newer version", "of a shape that was never written"],
)
async def test_an_unreadable_event_parks_only_projections_that_read_its_payload(
    database_url: str, owner_conn: psycopg.AsyncConnection, damage: str, error: str
) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id = await create_instance(store)
        await record_usage(store, instance_id, uuid4(), 1, usage_entry())
        await owner_conn.execute(damage.encode())
        follower = Follower(pool, UsageDaily(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        behind = {lane: one for lane, one in (await lane_backlogs(pool, "usage_daily")).items() if one != (0, None)}
        assert behind == {instance_id.bytes[15] & 63: (1, f"{error} (usage_recorded)")}
        assert set((await lane_backlogs(pool, "activity")).values()) == {(0, None)}
    report = await dry_run_here(database_url, Activity())
    assert (report.drifted, report.rows_compared) == (0, 2)


class Unlucky(Broken):
    """Also loses two races, after a batch as a whole has failed."""

    def __init__(self, refused: UUID, unlucky: UUID) -> None:
        super().__init__(refused, "SELECT 1 / 0")
        self._unlucky = unlucky
        self.races_lost = 0

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if self.races_lost < 2 and {fact.stream_id for fact in facts} == {self._unlucky}:
            self.races_lost += 1
            return [Statement(b"DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$", ())]
        return await super().changes(read, facts)


async def test_a_temporary_failure_parks_no_lane(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        refused, unlucky = [await create_instance(store, customer_id=f"customer-{n}") for n in range(2)]
        for instance_id in (refused, unlucky):
            await record_usage(store, instance_id, instance_id, 1, usage_entry())
        projection = Unlucky(refused, unlucky)
        follower = Follower(pool, projection)
        await follower.create_checkpoints()

        await follower.catch_up()

        assert projection.races_lost == 2
        parked = [lane for lane, (_, error) in (await lane_backlogs(pool, "usage_daily")).items() if error is not None]
        assert parked == [refused.bytes[15] & 63]
        report = await usage_report(pool, unlucky, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


class Fussy(UsageDaily):
    """Cannot process one instance's events."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if any(fact.stream_id == self._refused for fact in facts):
            raise ValueError(f"no to {facts[0].event}")
        return await super().changes(read, facts)


async def test_an_event_that_a_projection_cannot_process_parks_its_lane_and_no_other(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = [await create_instance(store, customer_id=f"customer-{n}") for n in range(10)]
        for instance_id in ids:
            await record_usage(store, instance_id, instance_id, 1, usage_entry())
        refused = ids[0]
        fussy = Follower(pool, Fussy(refused))
        await fussy.create_checkpoints()

        with capture_logs() as lines:
            await fussy.catch_up()

        parked = {
            lane: error for lane, (_, error) in (await lane_backlogs(pool, "usage_daily")).items() if error is not None
        }
        assert parked == {refused.bytes[15] & 63: "ValueError (usage_recorded)"}
        place = "SELECT lane, seq FROM event WHERE stream_id = %s AND type = 'usage_recorded'"
        ((lane, seq),) = await (await owner_conn.execute(place, (refused,))).fetchall()
        facts = {"follower": "usage_daily", "lane": lane, "seq": seq, "error": "ValueError"}
        alarms = [line for line in lines if line["event"] == "event_refused"]
        assert alarms == [{"event": "event_refused", "log_level": "error", **facts}], (
            "without anything that the event says"
        )
        healthy = [one for one in ids if one.bytes[15] & 63 != refused.bytes[15] & 63]
        for instance_id in healthy:
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == 1

        # Once the code is repaired and the pause is over, the lane continues where it was.
        await owner_conn.execute("UPDATE checkpoint SET parked_until = now() WHERE parked_until IS NOT NULL")
        await Follower(pool, UsageDaily()).catch_up()
        report = await usage_report(pool, refused, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


async def test_a_lane_with_a_gap_is_parked_right_before_the_gap_with_one_alarm(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        holed, whole = [await create_instance(store, customer_id=f"customer-{n}") for n in range(2)]
        for instance_id in (holed, whole):
            for seq in range(1, 4):
                await record_usage(store, instance_id, instance_id, seq, usage_entry())
        lane = lane_of(holed)
        assert lane != lane_of(whole)
        await owner_conn.execute("DELETE FROM event WHERE lane = %s AND seq = 3", (lane,))
        follower = Follower(pool, UsageDaily(), Activity())
        await follower.create_checkpoints()

        with capture_logs() as lines:
            await follower.catch_up()
            assert await follower.catch_up() == 0

        gap = f"Lane {lane} at 3: the next event is 4"
        alarms = [line for line in lines if line["event"] == "log_corrupted"]
        assert alarms == [{"event": "log_corrupted", "log_level": "critical", "lane": lane, "error": gap}]
        for name in ("usage_daily", "activity"):
            behind = {lane: one for lane, one in (await lane_backlogs(pool, name)).items() if one != (0, None)}
            assert behind == {lane: (2, gap)}
        for instance_id, requests in ((holed, 1), (whole, 3)):
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == requests
