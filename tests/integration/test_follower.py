"""A followed projection: exact sums, each event once, whatever crashes and whoever helps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec.structs import replace
from psycopg import sql
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from events import commands as c
from events.exchange import Statement, exchange
from events.ids import lane_of
from events.store import EventStore
from events.types import UsageEntry
from hydracore.db.pool import open_pool
from projections import checkpoint, operations
from projections.activity import Activity
from projections.fact import Fact, Read
from projections.fleet import Fleet
from projections.follower import Follower
from projections.usage_daily import COST_USD_MAX, TOKENS_MAX, UsageDaily
from projections.usage_queries import spent, usage_report
from tests.rebuilding import compared, write_lives
from tests.requests_to_log import NOW_MS, open_store, origin, requested

DAY_MS = 86_400_000
LAST_DAY = date(2026, 9, 21)  # the day of NOW_MS


def entry(*, days_ago: int = 0, cost_usd: str = "0.001", end_user: str | None = None) -> UsageEntry:
    return UsageEntry(
        at_ms=NOW_MS - days_ago * DAY_MS,
        model="scripted-1",
        prompt_tokens=100,
        completion_tokens=20,
        cost_usd=cost_usd,
        channel="api",
        end_user=end_user,
    )


async def record(store: EventStore, instance_id: UUID, ledger_id: UUID, seq: int, *entries: UsageEntry) -> None:
    command = c.RecordUsage(at_ms=NOW_MS, ledger_id=ledger_id, seq=seq, entries=entries)
    await store.execute(instance_id, command, origin("agent:x"))


async def test_usage_of_each_day_is_summed_and_days_without_use_are_there(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await requested(store), uuid4()
        await record(store, instance_id, ledger_id, 1, entry(end_user="a"), entry(end_user="b", cost_usd="0.25"))
        await record(store, instance_id, ledger_id, 2, entry(days_ago=2, end_user="a"))
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        await follower.catch_up()

        report = await usage_report(pool, instance_id, last=LAST_DAY, days=4)
        assert [day.requests for day in report.days] == [0, 1, 0, 2]
        assert report.days[0].day == date(2026, 9, 18)
        assert report.days[3].cost_usd == Decimal("0.251")
        assert report.days[3].prompt_tokens == 200
        assert report.unique_end_users == 2
        known = await spent(pool, instance_id, today=LAST_DAY)
        assert (known.daily_usd, known.monthly_usd) == (Decimal("0.251"), Decimal("0.252"))
        assert (await lanes(pool, "usage_daily"))[instance_id.bytes[15] & 63] == (0, None)


@pytest.mark.parametrize(
    ("zone", "last"), [("Africa/Cairo", date(2024, 4, 27)), ("America/Santiago", date(2024, 9, 10))]
)
async def test_days_are_there_in_zones_whose_clocks_change_at_midnight(
    database_url: str, owner_conn: psycopg.AsyncConnection, zone: str, last: date
) -> None:
    name = sql.Identifier(owner_conn.info.dbname)
    await owner_conn.execute(sql.SQL("ALTER DATABASE {} SET timezone TO {}").format(name, zone))

    async with open_pool(database_url, role="hydracore_app", application="test", size=1) as pool:
        report = await usage_report(pool, uuid4(), last=last, days=5)
        known = await spent(pool, uuid4(), today=last)

    assert [day.day for day in report.days] == [last - timedelta(days=ago) for ago in (4, 3, 2, 1, 0)]
    assert (known.daily_usd, known.monthly_usd) == (0, 0)


async def test_a_batch_that_the_agent_sends_twice_counts_once(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await requested(store), uuid4()
        await record(store, instance_id, ledger_id, 1, entry())
        await record(store, instance_id, ledger_id, 1, entry())
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()

        await follower.catch_up()
        await follower.catch_up()

        report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


async def test_no_sum_of_many_entries_is_too_much_for_its_column(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id, ledger_id = await requested(store), uuid4()
        follower = Follower(pool, UsageDaily())
        await follower.create_checkpoints()
        much = replace(entry(cost_usd="600000000000"), prompt_tokens=6 * 10**17, completion_tokens=6 * 10**17)
        for seq, entries in enumerate(([much], [much], [much, much, much], [entry()]), start=1):
            await record(store, instance_id, ledger_id, seq, *entries)
            await follower.catch_up()

        (day,) = (await usage_report(pool, instance_id, last=LAST_DAY, days=1)).days
        assert (day.requests, day.cost_usd) == (6, COST_USD_MAX)
        assert day.prompt_tokens == day.completion_tokens == TOKENS_MAX
        assert set((await lanes(pool, "usage_daily")).values()) == {(0, None)}
        assert (await compared(database_url, UsageDaily())).drifted == 0


async def test_several_followers_share_the_lanes_and_take_each_event_once(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        ids = [await requested(store, customer_id=f"customer-{n}") for n in range(30)]
        followers = [Follower(pool, UsageDaily()) for _ in range(3)]
        for follower in followers:
            await follower.create_checkpoints()

        async def write() -> None:
            for seq in range(1, 4):
                for instance_id in ids:
                    await record(store, instance_id, instance_id, seq, entry())

        async def follow(follower: Follower, written: asyncio.Task[None]) -> None:
            while not written.done():
                await follower.catch_up()

        written = asyncio.create_task(write())
        await asyncio.gather(written, *(follow(follower, written) for follower in followers))
        await followers[0].catch_up()

        for instance_id in ids:
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == 3


async def lanes(pool: AsyncConnectionPool, name: str) -> dict[int, tuple[int, str | None]]:
    """How many events a follower is behind in each lane, and why it is parked there."""
    async with pool.connection() as connection:
        found = {one.name: one for one in await operations.status(connection, sample_s=0)}[name]
    return {lane.lane: (lane.behind, lane.error) for lane in found.lanes}


async def test_a_projection_that_is_far_behind_catches_up_beside_those_that_are_not(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=8)
        ahead = Follower(pool, Fleet(), Activity())
        await ahead.create_checkpoints()
        await ahead.catch_up()
        usage, late = await requested(store), uuid4()
        await record(store, usage, late, 1, entry())
        together = Follower(pool, UsageDaily(), Fleet(), Activity())
        await together.create_checkpoints()

        await together.catch_up()

        for name in ("usage_daily", "fleet", "activity"):
            assert set((await lanes(pool, name)).values()) == {(0, None)}
    for projection in (UsageDaily(), Fleet(), Activity()):
        report = await compared(database_url, projection)
        assert (report.drifted, report.rows_compared > 0) == (0, True)


@pytest.mark.parametrize(
    "small",
    [{"projections.follower.BATCH_MAX": 2, "projections.follower.LANE_BATCH_MIN": 2}, {"events.pages.PAGE_BYTES": 1}],
    ids=["full of events", "full of bytes"],
)
async def test_one_look_takes_all_that_is_new_however_many_pages_that_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch, small: dict[str, int]
) -> None:
    for limit, value in small.items():
        monkeypatch.setattr(limit, value)
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=2)
        follower = Follower(pool, Fleet(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        for name in ("fleet", "activity"):
            assert set((await lanes(pool, name)).values()) == {(0, None)}


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
        # Such as a row that no index has room for: operational, and it fails the same way every time.
        ("DO $$ BEGIN RAISE EXCEPTION 'too long' USING ERRCODE = '54000'; END $$", "ProgramLimitExceeded"),
    ],
)
async def test_a_projection_that_is_parked_stops_no_other(database_url: str, statement: str, error: str) -> None:
    following = open_pool(database_url, role="hydracore_app", application="following", size=2)
    async with open_store(database_url) as (store, pool), following as both:
        ids = [await requested(store, customer_id=f"customer-{n}") for n in range(10)]
        for instance_id in ids:
            await record(store, instance_id, instance_id, 1, entry())
        await write_lives(store, count=4)
        # Where psycopg has prepared something itself, a rollback of its has the server forget all that is prepared. So on both: a
        # batch that fails is taken apart on the other connection.
        async with both.connection() as one, both.connection() as other:
            for connection in (one, other):
                await exchange(connection, [checkpoint.move([])])
                await connection.execute("SELECT 1", prepare=True)
        follower = Follower(both, Broken(ids[0], statement), Fleet(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        parked = {lane: error for lane, (_, error) in (await lanes(pool, "usage_daily")).items() if error is not None}
        assert parked == {ids[0].bytes[15] & 63: f"{error} (usage_recorded)"}
        for name in ("fleet", "activity"):
            assert set((await lanes(pool, name)).values()) == {(0, None)}
    for projection in (Fleet(), Activity()):
        assert (await compared(database_url, projection)).drifted == 0


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("UPDATE event SET schema_version = 99 WHERE type = 'usage_recorded'", "EventUnreadable"),
        (
            """UPDATE event SET payload = '{"type": "usage_recorded"}' WHERE type = 'usage_recorded'""",
            "ValidationError",
        ),
    ],
    ids=["of a newer version", "of no shape that was ever written"],
)
async def test_an_event_that_cannot_be_read_parks_only_those_who_want_to_know_what_it_says(
    database_url: str, owner_conn: psycopg.AsyncConnection, damage: str, error: str
) -> None:
    async with open_store(database_url) as (store, pool):
        instance_id = await requested(store)
        await record(store, instance_id, uuid4(), 1, entry())
        await owner_conn.execute(damage.encode())
        follower = Follower(pool, UsageDaily(), Activity())
        await follower.create_checkpoints()

        await follower.catch_up()

        behind = {lane: one for lane, one in (await lanes(pool, "usage_daily")).items() if one != (0, None)}
        assert behind == {instance_id.bytes[15] & 63: (1, f"{error} (usage_recorded)")}
        assert set((await lanes(pool, "activity")).values()) == {(0, None)}
    report = await compared(database_url, Activity())
    assert (report.drifted, report.rows_compared) == (0, 2)


class Unlucky(Broken):
    """Loses two races besides, once it is known that not all of a batch can be taken."""

    def __init__(self, refused: UUID, unlucky: UUID) -> None:
        super().__init__(refused, "SELECT 1 / 0")
        self._unlucky = unlucky
        self.races_lost = 0

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if self.races_lost < 2 and {fact.stream_id for fact in facts} == {self._unlucky}:
            self.races_lost += 1
            return [Statement(b"DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$", ())]
        return await super().changes(read, facts)


async def test_what_passes_by_itself_parks_no_lane(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        refused, unlucky = [await requested(store, customer_id=f"customer-{n}") for n in range(2)]
        for instance_id in (refused, unlucky):
            await record(store, instance_id, instance_id, 1, entry())
        projection = Unlucky(refused, unlucky)
        follower = Follower(pool, projection)
        await follower.create_checkpoints()

        await follower.catch_up()

        assert projection.races_lost == 2
        parked = [lane for lane, (_, error) in (await lanes(pool, "usage_daily")).items() if error is not None]
        assert parked == [refused.bytes[15] & 63]
        report = await usage_report(pool, unlucky, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


class Fussy(UsageDaily):
    """Cannot take one instance's events."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if any(fact.stream_id == self._refused for fact in facts):
            raise ValueError(f"no to {facts[0].event}")
        return await super().changes(read, facts)


async def test_an_event_that_cannot_be_taken_parks_its_lane_and_no_other(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        ids = [await requested(store, customer_id=f"customer-{n}") for n in range(10)]
        for instance_id in ids:
            await record(store, instance_id, instance_id, 1, entry())
        refused = ids[0]
        fussy = Follower(pool, Fussy(refused))
        await fussy.create_checkpoints()

        with capture_logs() as said:
            await fussy.catch_up()

        parked = {lane: error for lane, (_, error) in (await lanes(pool, "usage_daily")).items() if error is not None}
        assert parked == {refused.bytes[15] & 63: "ValueError (usage_recorded)"}
        place = "SELECT lane, seq FROM event WHERE stream_id = %s AND type = 'usage_recorded'"
        ((lane, seq),) = await (await owner_conn.execute(place, (refused,))).fetchall()
        facts = {"follower": "usage_daily", "lane": lane, "seq": seq, "error": "ValueError"}
        alarms = [line for line in said if line["event"] == "event_refused"]
        assert alarms == [{"event": "event_refused", "log_level": "error", **facts}], "and nothing that the event says"
        healthy = [one for one in ids if one.bytes[15] & 63 != refused.bytes[15] & 63]
        for instance_id in healthy:
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == 1

        # Once the code is mended and the pause is over, the lane goes on where it stood.
        await owner_conn.execute("UPDATE checkpoint SET parked_until = now() WHERE parked_until IS NOT NULL")
        await Follower(pool, UsageDaily()).catch_up()
        report = await usage_report(pool, refused, last=LAST_DAY, days=1)
        assert report.days[0].requests == 1


async def test_a_lane_that_lacks_an_event_is_parked_right_before_it_with_one_alarm(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        holed, whole = [await requested(store, customer_id=f"customer-{n}") for n in range(2)]
        for instance_id in (holed, whole):
            for seq in range(1, 4):
                await record(store, instance_id, instance_id, seq, entry())
        lane = lane_of(holed)
        assert lane != lane_of(whole)
        await owner_conn.execute("DELETE FROM event WHERE lane = %s AND seq = 3", (lane,))
        follower = Follower(pool, UsageDaily(), Activity())
        await follower.create_checkpoints()

        with capture_logs() as said:
            await follower.catch_up()
            assert await follower.catch_up() == 0

        gap = f"Lane {lane} at 3: the next event is 4"
        alarms = [line for line in said if line["event"] == "log_corrupted"]
        assert alarms == [{"event": "log_corrupted", "log_level": "critical", "lane": lane, "error": gap}]
        for name in ("usage_daily", "activity"):
            behind = {lane: one for lane, one in (await lanes(pool, name)).items() if one != (0, None)}
            assert behind == {lane: (2, gap)}
        for instance_id, requests in ((holed, 1), (whole, 3)):
            report = await usage_report(pool, instance_id, last=LAST_DAY, days=1)
            assert report.days[0].requests == requests
