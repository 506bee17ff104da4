"""Operating projections: a bad event parks its lane just before it, and every intervention is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import psycopg
import pytest

from events.exchange import Statement
from events.ids import lane_of
from events.types import InstanceRequested
from hydracore.audit.verifying import Progress, Request, verify
from projections import generations, operations
from projections.errors import NotParked, NotSkipped, ParkedElsewhere, RebuildBusy
from projections.fact import Fact, Read, Reader
from projections.fact_pages import read_facts
from projections.fleet import Fleet
from projections.follower import Follower
from projections.rebuild import rebuild, rollback
from projections.usage_daily import UsageDaily
from tests.parked_lanes import RejectingProjection, interventions, log_with_parked_lane, usage_seq
from tests.rebuilding import QUIET, dry_run_here, rebuild_here, write_instances
from tests.store_commands import open_store
from tests.waiting import until


class FixedUsageDaily(UsageDaily):
    """The next version, which can apply the event."""

    version = 2


class FussyFleet(Fleet):
    """Cannot apply the request of one instance."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        if any(fact.stream_id == self._refused and isinstance(fact.event, InstanceRequested) for fact in facts):
            raise ValueError("no")
        return await super().changes(read, facts)


#: Skips and revoked skips of another projection, version, lane and event.
_SKIPPED_ELSEWHERE = """
INSERT INTO projection_intervention (name, version, lane, seq, action, error, actor, reason)
SELECT e.name, e.version, e.lane, e.seq, a.action, 'elsewhere', 'operator:eve', ''
  FROM (VALUES ('fleet', 1, %(lane)s, %(seq)s), ('usage_daily', 2, %(lane)s, %(seq)s),
               ('usage_daily', 1, (SELECT min(lane) FROM lane_head WHERE head = 0), %(seq)s),
               ('usage_daily', 1, %(lane)s, %(seq)s + 1000)) AS e (name, version, lane, seq)
 CROSS JOIN (VALUES ('skip'), ('unskip')) AS a (action)
 ORDER BY a.action
"""

#: The operator who intervenes.
EVE = operations.Author("operator:eve", "ticket 7")


async def skipped(connection: psycopg.AsyncConnection, refused: UUID) -> operations.Intervention:
    """Skip the second batch of the instance, at which its lane is parked."""
    return await operations.skip(
        connection, "usage_daily", lane_of(refused), await usage_seq(connection, refused, 2), EVE
    )


async def requests_counted(connection: psycopg.AsyncConnection, instance_id: UUID) -> int:
    statement = "SELECT coalesce(sum(requests), 0)::int FROM usage_daily WHERE instance_id = %s"
    row = await (await connection.execute(statement, (instance_id,))).fetchone()
    assert row is not None
    return row[0]


async def test_a_lane_is_parked_before_a_bad_event_and_other_lanes_continue(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, _, refused):
        found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}["usage_daily"]

        (lane,) = found.parked
        assert (lane.lane, lane.error) == (lane_of(refused), "ValueError (usage_recorded)")
        assert lane.behind_s > 0
        assert await requests_counted(owner_conn, refused) == 1
        row = await (
            await owner_conn.execute(
                "SELECT stream_id, payload->>'seq' FROM event WHERE lane = %s AND seq = %s", (lane.lane, lane.seq + 1)
            )
        ).fetchone()
        assert row == (refused, "2")
        assert await (await owner_conn.execute("SELECT sum(requests)::int FROM usage_daily")).fetchone() != (1,)

        # A build stops there as well, so the rows before the event can be compared.
        await owner_conn.execute("UPDATE usage_daily SET requests = 99 WHERE instance_id = %s", (refused,))
        report = await dry_run_here(database_url, UsageDaily())
        assert (report.rows_compared, report.drifted) == (10, 1)


async def test_a_skip_is_recorded_and_holds_in_a_rebuild_and_a_verification(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        done = await skipped(owner_conn, refused)
        await Follower(pool, RejectingProjection(refused)).catch_up()

        assert await requests_counted(owner_conn, refused) == 3
        assert (done.action, done.error, done.actor, done.reason) == (
            "skip",
            "ValueError (usage_recorded)",
            "operator:eve",
            "ticket 7",
        )
        assert await interventions(owner_conn, "usage_daily") == [done]
        report = await dry_run_here(database_url, UsageDaily())
        assert (report.drifted, report.rows_compared) == (0, 10)
        verification = Request(conninfo=database_url, lanes=(lane_of(refused),), full_speed=True)
        verified = await asyncio.to_thread(verify, verification, Progress())
        assert verified.findings == []


async def test_an_instance_whose_first_event_is_skipped_is_left_out_and_parks_no_lane(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        (refused, *_) = await write_instances(store, count=4, start=3)
        follower = Follower(pool, FussyFleet(refused))
        await follower.create_checkpoints()
        await follower.catch_up()
        lane = lane_of(refused)

        (one,) = [one for one in await operations.status(owner_conn, sample_s=0) if one.name == "fleet"]
        (place,) = one.parked
        assert place.event is not None
        await operations.skip(owner_conn, "fleet", lane, place.event, EVE)
        await Follower(pool, Fleet()).catch_up()

        (one,) = [one for one in await operations.status(owner_conn, sample_s=0) if one.name == "fleet"]
        assert (one.behind, one.parked) == (0, [])
        members = await (await owner_conn.execute("SELECT instance_id FROM fleet_member")).fetchall()
        assert (len(members), (refused,) in members) == (3, False)
        assert (await dry_run_here(database_url, Fleet())).drifted == 0
        verification = Request(conninfo=database_url, lanes=(lane,), full_speed=True)
        assert (await asyncio.to_thread(verify, verification, Progress())).findings == []


@pytest.mark.parametrize(
    ("code", "live", "is_outdated"),
    [(2, 1, True), (1, None, True), (1, 1, False), (1, 2, False), (None, 1, False)],
    ids=["older than the code", "never built", "as the code", "newer than the code", "known to no code"],
)
def test_a_projection_is_outdated_if_a_rebuild_by_this_code_would_give_it_a_newer_version(
    code: int | None,
    live: int | None,
    is_outdated: bool,  # noqa: FBT001 - a parameter
) -> None:
    found = operations.ProjectionStatus(
        name="fleet",
        kind="followed",
        code_version=code,
        version=live,
        generation=None if live is None else 1,
        swapped_at=None,
        events_per_s=0.0,
        lanes=[],
        others=[],
        missing=[],
    )

    assert found.outdated == is_outdated


async def test_a_swap_changes_the_swap_time_of_its_own_projection_only(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def swapped_at() -> dict[str, tuple[int | None, datetime | None]]:
        return {one.name: (one.generation, one.swapped_at) for one in await operations.status(owner_conn, sample_s=0)}

    await rebuild_here(database_url, UsageDaily())
    before = await swapped_at()
    await rebuild_here(database_url, Fleet())
    after = await swapped_at()

    assert before["usage_daily"][0] == after["fleet"][0] == 2
    assert {name for name, dated in after.items() if dated != before[name]} == {"fleet"}


async def test_an_event_skipped_in_one_version_is_applied_by_the_next(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        await skipped(owner_conn, refused)
        await Follower(pool, RejectingProjection(refused)).catch_up()

        report = await dry_run_here(database_url, FixedUsageDaily())
        (drift,) = report.drift
        assert drift.key["instance_id"] == str(refused)
        assert ((drift.live or {})["requests"], (drift.fresh or {})["requests"]) == (3, 4)
        place, seq = (lane_of(refused), 0), await usage_seq(owner_conn, refused, 2)
        found = [
            await read_facts(owner_conn, [place], [Reader.of(one)], heads={place[0]: seq}, limit=seq)
            for one in (UsageDaily(), FixedUsageDaily())
        ]
        assert [one.skipped for one in found] == [{("usage_daily", place[0], seq)}, frozenset()]


async def test_a_skip_of_any_event_but_the_parked_one_is_refused(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, _, refused):
        lane, seq = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        # Another operator saw the lane parked at an earlier event.
        earlier = await usage_seq(owner_conn, refused, 1)

        with pytest.raises(ParkedElsewhere, match=f"is parked at event {seq}, not at event {earlier}"):
            await operations.skip(owner_conn, "usage_daily", lane, earlier, EVE)

        assert await interventions(owner_conn, "usage_daily") == []
        found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}["usage_daily"]
        assert [(one.lane, one.seq) for one in found.parked] == [(lane, seq - 1)]


async def test_an_event_whose_skip_was_revoked_is_applied_by_the_next_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        lane, seq = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        with pytest.raises(NotSkipped):
            await operations.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        await skipped(owner_conn, refused)
        await owner_conn.execute(_SKIPPED_ELSEWHERE, {"lane": lane, "seq": seq})
        await Follower(pool, UsageDaily()).catch_up()
        await owner_conn.execute("UPDATE usage_daily SET requests = 99 WHERE instance_id <> %s", (refused,))
        assert (await rebuild_here(database_url, UsageDaily())).drifted == 9, "a build is kept that lacks the event"

        done = await operations.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        report = await rebuild_here(database_url, UsageDaily(), accept_drift=True)

        assert (done.action, done.seq, done.error) == ("unskip", seq, "ValueError (usage_recorded)")
        assert (report.resumed, report.drifted) == (False, 10)
        assert await requests_counted(owner_conn, refused) == 4
        with pytest.raises(NotSkipped):
            await operations.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        assert (await dry_run_here(database_url, UsageDaily())).drifted == 0


async def test_revoking_a_skip_keeps_the_unfinished_build_of_another_version(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async def broken_off(*_: object) -> None:
        raise InterruptedError

    async with log_with_parked_lane(database_url) as (_, _, refused):
        await skipped(owner_conn, refused)
        with pytest.raises(InterruptedError):
            await rebuild(database_url, FixedUsageDaily(), folding=broken_off, callbacks=QUIET)

        await operations.unskip(
            owner_conn, "usage_daily", lane_of(refused), await usage_seq(owner_conn, refused, 2), EVE
        )

        assert [build.version for build in await generations.unfinished(owner_conn, "usage_daily")] == [2]


async def test_an_event_that_a_follower_just_applied_cannot_be_skipped(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with (
        log_with_parked_lane(database_url) as (_, _, refused),
        await psycopg.AsyncConnection.connect(database_url) as follower,
    ):
        lane, seq = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        # The follower holds the lane, and applies the event.
        await follower.execute(
            "UPDATE checkpoint SET seq = seq + 1, error = NULL, parked_until = NULL"
            " WHERE follower = 'usage_daily' AND lane = %s",
            (lane,),
        )
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as skipping:
            skip = asyncio.create_task(operations.skip(skipping, "usage_daily", lane, seq, EVE))
            waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"

            async def is_waiting() -> bool:
                return await (await owner_conn.execute(waits, (skipping.info.backend_pid,))).fetchone() is not None

            await until(is_waiting)
            await follower.commit()

            with pytest.raises(NotParked):
                await skip
        assert await interventions(owner_conn, "usage_daily") == []


async def test_skips_cannot_be_added_to_a_build_or_revoked_during_a_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with (
        log_with_parked_lane(database_url) as (_, _, refused),
        await psycopg.AsyncConnection.connect(database_url) as builder,
    ):
        await skipped(owner_conn, refused)
        lane, seq = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        turn = "SELECT pg_advisory_lock(hashtextextended('hydracore projection usage_daily', 0))"
        await builder.execute(turn)

        with pytest.raises(RebuildBusy):
            await operations.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        with pytest.raises(RebuildBusy):
            await operations.skip_in_build(owner_conn, "usage_daily", lane, seq, EVE, version=1)

        assert [one.action for one in await interventions(owner_conn, "usage_daily")] == ["skip"]


async def test_the_lag_of_a_lane_is_the_age_of_its_first_unapplied_event(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, _, refused):
        lane, seq = lane_of(refused), await usage_seq(owner_conn, refused, 2)
        aged = "UPDATE event SET recorded_at = now() - (%s - seq) * interval '1 hour' WHERE lane = %s"
        await owner_conn.execute(aged, (seq + 1, lane))

        found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}["usage_daily"]

        (where,) = found.parked
        assert 3_600 <= where.behind_s < 7_200
        assert found.behind_s == where.behind_s


async def test_a_retried_event_is_applied_at_once_by_fixed_code(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        fixed = Follower(pool, UsageDaily())
        await fixed.catch_up()
        assert await requests_counted(owner_conn, refused) == 1

        seq = await usage_seq(owner_conn, refused, 2)
        with pytest.raises(ParkedElsewhere, match=f"is parked at event {seq}, not at event {seq + 1}"):
            await operations.retry(owner_conn, "usage_daily", lane_of(refused), EVE, seq=seq + 1)
        await operations.retry(owner_conn, "usage_daily", lane_of(refused), EVE, seq=seq)
        await fixed.catch_up()

        assert await requests_counted(owner_conn, refused) == 4
        with pytest.raises(NotParked):
            await operations.retry(owner_conn, "usage_daily", lane_of(refused), EVE)


async def test_a_rollback_does_not_park_the_lane_that_was_parked_in_the_earlier_generation(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, pool, refused):
        await rebuild_here(database_url, UsageDaily())
        await Follower(pool, UsageDaily()).catch_up()
        await rollback(database_url, UsageDaily())

        found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}["usage_daily"]
        assert (found.generation, found.behind, found.parked) == (1, 0, [])
        assert await requests_counted(owner_conn, refused) == 4
