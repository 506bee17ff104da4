"""Looking after projections: a bad event parks its lane right before itself, and what is done about it is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.ids import lane_of
from events.store import EventStore
from hydracore.audit.verifying import Progress, Request, verify
from hydracore.cli import main
from projections import care
from projections.activity_queries import tenant_activity
from projections.errors import FoldFailed, NotParked, NotSkipped, ParkedElsewhere, UnknownProjection
from projections.fact import Fact, Reader, read_skipped
from projections.fleet_queries import fleet_counts
from projections.follower import Follower
from projections.instance import InstanceProjection
from projections.rebuild import rebuild, rollback
from projections.usage_daily import UsageDaily
from tests import lives
from tests.rebuilding import QUIET, compared, follow_all, rebuilt, write_lives
from tests.requests_to_log import open_store, origin, requested


class Mended(UsageDaily):
    """The version behind the one that could not take it."""

    version = 2


class Fussy(UsageDaily):
    """Cannot take the second batch of one instance's usage."""

    def __init__(self, refused: UUID) -> None:
        self._refused = refused

    async def apply(self, connection: AsyncConnection, facts: Sequence[Fact]) -> None:
        if any(fact.stream_id == self._refused and getattr(fact.event, "seq", 0) == 2 for fact in facts):
            raise ValueError("no")
        await super().apply(connection, facts)


#: Who looks after projections here.
EVE = care.By("operator:eve", "ticket 7")


async def seq_of(connection: psycopg.AsyncConnection, instance_id: UUID, batch: int) -> int:
    """The number in its lane of an instance's batch of usage."""
    statement = "SELECT seq FROM event WHERE stream_id = %s AND type = 'usage_recorded' AND payload->>'seq' = %s"
    row = await (await connection.execute(statement, (instance_id, str(batch)))).fetchone()
    assert row is not None
    return row[0]


async def skipped(connection: psycopg.AsyncConnection, refused: UUID) -> care.Intervention:
    """The second batch of the instance, at which its lane is parked."""
    return await care.skip(connection, "usage_daily", lane_of(refused), await seq_of(connection, refused, 2), EVE)


@asynccontextmanager
async def parked(database_url: str) -> AsyncGenerator[tuple[EventStore, AsyncConnectionPool, UUID]]:
    """Ten instances with four batches of usage each; one lane is parked at its second batch."""
    async with open_store(database_url) as (store, pool):
        ids = [await requested(store, customer_id=f"customer-{number}") for number in range(10)]
        for seq in range(1, 5):
            for instance_id in ids:
                await store.execute(instance_id, lives.usage(seq), origin("agent:x"))
        follower = Follower(pool, Fussy(ids[0]))
        await follower.enter()
        await follower.catch_up()
        yield store, pool, ids[0]


async def requests_counted(connection: psycopg.AsyncConnection, instance_id: UUID) -> int:
    statement = "SELECT coalesce(sum(requests), 0)::int FROM usage_daily WHERE instance_id = %s"
    row = await (await connection.execute(statement, (instance_id,))).fetchone()
    assert row is not None
    return row[0]


async def test_a_lane_is_parked_right_before_the_bad_event_and_no_other_waits(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, _, refused):
        found = {one.name: one for one in await care.status(owner_conn, sample_s=0)}["usage_daily"]

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

        # A build stops there too, so that what there is can be compared.
        await owner_conn.execute("UPDATE usage_daily SET requests = 99 WHERE instance_id = %s", (refused,))
        report = await compared(database_url, UsageDaily())
        assert (report.rows_compared, report.drifted) == (10, 1)


async def test_a_skipped_event_is_written_down_and_stays_skipped_in_a_rebuild_and_a_verification(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, pool, refused):
        done = await skipped(owner_conn, refused)
        await Follower(pool, Fussy(refused)).catch_up()

        assert await requests_counted(owner_conn, refused) == 3
        assert (done.action, done.error, done.actor, done.reason) == (
            "skip",
            "ValueError (usage_recorded)",
            "operator:eve",
            "ticket 7",
        )
        assert await care.interventions(owner_conn, "usage_daily") == [done]
        report = await compared(database_url, UsageDaily())
        assert (report.drifted, report.rows_compared) == (0, 10)
        verification = Request(conninfo=database_url, lanes=(lane_of(refused),), full_speed=True)
        verified = await asyncio.to_thread(verify, verification, Progress())
        assert verified.findings == []


async def test_what_one_version_passed_over_the_next_one_takes(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, pool, refused):
        await skipped(owner_conn, refused)
        await Follower(pool, Fussy(refused)).catch_up()

        report = await compared(database_url, Mended())
        (drift,) = report.drift
        assert drift.key["instance_id"] == str(refused)
        assert ((drift.live or {})["requests"], (drift.fresh or {})["requests"]) == (3, 4)
        passed_over = [await read_skipped(owner_conn, [Reader.of(one)]) for one in (UsageDaily(), Mended())]
        assert [len(found) for found in passed_over] == [1, 0]


async def test_only_the_event_that_was_looked_at_is_skipped(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, _, refused):
        lane, seq = lane_of(refused), await seq_of(owner_conn, refused, 2)
        # Somebody else saw the lane parked where it was before.
        earlier = await seq_of(owner_conn, refused, 1)

        with pytest.raises(ParkedElsewhere, match=f"is parked at event {seq}, not at event {earlier}"):
            await care.skip(owner_conn, "usage_daily", lane, earlier, EVE)

        assert await care.interventions(owner_conn, "usage_daily") == []
        found = {one.name: one for one in await care.status(owner_conn, sample_s=0)}["usage_daily"]
        assert [(one.lane, one.seq) for one in found.parked] == [(lane, seq - 1)]


async def test_an_event_that_is_skipped_no_longer_is_taken_by_the_next_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, pool, refused):
        lane, seq = lane_of(refused), await seq_of(owner_conn, refused, 2)
        with pytest.raises(NotSkipped):
            await care.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        await skipped(owner_conn, refused)
        await Follower(pool, UsageDaily()).catch_up()
        await owner_conn.execute("UPDATE usage_daily SET requests = 99 WHERE instance_id <> %s", (refused,))
        assert (await rebuilt(database_url, UsageDaily())).drifted == 9, "a build is kept that lacks the event"

        done = await care.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        report = await rebuilt(database_url, UsageDaily(), accept_drift=True)

        assert (done.action, done.seq, done.error) == ("unskip", seq, "ValueError (usage_recorded)")
        assert (report.resumed, report.drifted) == (False, 10)
        assert await requests_counted(owner_conn, refused) == 4
        with pytest.raises(NotSkipped):
            await care.unskip(owner_conn, "usage_daily", lane, seq, EVE)
        assert (await compared(database_url, UsageDaily())).drifted == 0


async def test_a_retried_event_is_taken_at_once_by_code_that_can(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, pool, refused):
        mended = Follower(pool, UsageDaily())
        await mended.catch_up()
        assert await requests_counted(owner_conn, refused) == 1

        seq = await seq_of(owner_conn, refused, 2)
        with pytest.raises(ParkedElsewhere, match=f"is parked at event {seq}, not at event {seq + 1}"):
            await care.retry(owner_conn, "usage_daily", lane_of(refused), EVE, seq=seq + 1)
        await care.retry(owner_conn, "usage_daily", lane_of(refused), EVE, seq=seq)
        await mended.catch_up()

        assert await requests_counted(owner_conn, refused) == 4
        with pytest.raises(NotParked):
            await care.retry(owner_conn, "usage_daily", lane_of(refused), EVE)
        with pytest.raises(UnknownProjection):
            await care.skip(owner_conn, "nothing", 0, 1, EVE)


async def test_where_a_generation_was_parked_is_nothing_to_whoever_rolls_back_to_it(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, pool, refused):
        await rebuilt(database_url, UsageDaily())
        await Follower(pool, UsageDaily()).catch_up()
        await rollback(database_url, UsageDaily())

        found = {one.name: one for one in await care.status(owner_conn, sample_s=0)}["usage_daily"]
        assert (found.generation, found.behind, found.parked) == (1, 0, [])
        assert await requests_counted(owner_conn, refused) == 4


async def test_fleet_and_activity_tell_what_there_was_and_who_did_it(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=8)
        await follow_all(pool)
        now = datetime.now(UTC)

        counts = await fleet_counts(pool, [now - timedelta(hours=2), now])
        activity = await tenant_activity(pool, "acme", first=now.date() - timedelta(days=1), last=now.date())

        assert {(one.status, one.provider): one.instances for one in counts} == {
            ("pending", ""): 2,
            ("provisioning", "cloudsim"): 4,
            ("deleted", "cloudsim"): 2,
        }
        assert {one.at for one in counts} == {now}
        by_agent = {one.command: (one.commands, one.events) for one in activity if one.actor == "agent:x"}
        assert by_agent == {"RecordServerCreated": (4, 4), "EnrolAgent": (4, 4), "RecordUsage": (4, 4)}
        planned = [one for one in activity if one.command == "PlanServer"]
        assert [(one.actor, one.commands, one.events) for one in planned] == [("worker", 6, 18)]


async def hydracore(database_url: str, *words: str) -> Result:
    """The command in this process; a command has an event loop of its own, so it runs in a thread."""
    env = {"HYDRACORE_DATABASE_URL": database_url}
    return await asyncio.to_thread(CliRunner().invoke, main, ["projections", *words], env=env)


async def test_what_nobody_has_followed_yet_is_behind_and_what_was_never_built_waits_for_it(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await requested(store)
    await owner_conn.execute("DELETE FROM projection WHERE name = 'fleet'")
    await owner_conn.execute("DELETE FROM projection WHERE name = 'reservation'")

    found = {one.name: one for one in await care.status(owner_conn, sample_s=0)}
    told = (await hydracore(database_url, "status")).stdout.splitlines()

    assert {name: one.behind for name, one in found.items() if one.behind} == {
        "usage_daily": 1,
        "fleet": 1,
        "activity": 1,
    }
    assert found["activity"].behind_s > 0
    assert "fleet: version none, generation none, 1 behind, 0 events/s; version 1 waits for `rebuild`" in told
    assert "reservation: version none, generation none, 0 behind, 0 events/s; version 1 waits for `rebuild`" in told


async def test_the_command_line_tells_and_its_exit_status_means_something(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with parked(database_url) as (_, _, refused):
        listed = await hydracore(database_url, "list", "--json")
        stuck = await hydracore(database_url, "status", "usage_daily")
        lane = str(lane_of(refused))
        seq = str(await seq_of(owner_conn, refused, 2))
        words = ("skip", "usage_daily", "--lane", lane, "--event", seq, "--reason", "ticket 7")
        done = await hydracore(database_url, *words, "--json")
        again = await hydracore(database_url, *words)
        elsewhere = await hydracore(database_url, *words, "--version", "2")
        back = await hydracore(database_url, "unskip", *words[1:])

        names = {one["name"]: (one["version"], one["generation"], one["kind"]) for one in json.loads(listed.stdout)}
        assert names["fleet"] == (1, 1, "followed")
        assert names["instance"] == (1, 1, "inline")
        assert (stuck.exit_code, "ValueError" in stuck.stdout) == (5, True)
        assert json.loads(done.stdout)["action"] == "skip"
        assert (again.exit_code, again.stderr.startswith("hydracore: Lane")) == (1, True)
        assert (back.exit_code, "to be taken by the next rebuild in version 1" in back.stdout) == (0, True)
        assert (elsewhere.exit_code, "no build of it is under way" in elsewhere.stderr) == (1, True)

        await owner_conn.execute("UPDATE instance SET agent_name = 'Eve' WHERE id = %s", (refused,))
        dry = await hydracore(database_url, "rebuild", "instance", "--dry-run", "--workers", "1", "--json")
        report: dict[str, Any] = json.loads(dry.stdout)[0]
        assert (dry.exit_code, report["drifted"], report["drift"][0]["live"]) == (3, 1, {"agent_name": "Eve"})
        mended = await hydracore(database_url, "rebuild", "instance", "--accept-drift", "--workers", "1")
        assert (mended.exit_code, "generation 2 is live" in mended.stdout) == (0, True), mended
        assert (await hydracore(database_url, "rebuild", "--outdated")).stdout == "nothing is outdated\n"
        assert (await hydracore(database_url, "rebuild", "nothing")).exit_code == 2
        assert "generation 1" in (await hydracore(database_url, "rollback", "instance")).stdout
        assert "dropped generation 2" in (await hydracore(database_url, "prune", "--all")).stdout


async def test_a_failure_of_one_projection_loses_no_report_of_the_others(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_lives(store, count=1)
        await follow_all(pool)
    busy = b"SELECT pg_advisory_lock(hashtextextended('hydracore projection reservation', 0))"
    await owner_conn.execute(busy)
    await owner_conn.execute("UPDATE fleet SET entries = 7")

    done = await hydracore(database_url, "rebuild", "--all", "--workers", "1")
    pruned = await hydracore(database_url, "prune", "--all", "--json")

    assert done.exit_code == pruned.exit_code == 4
    assert done.stderr == "hydracore: Somebody else is rebuilding reservation\n"
    told = {line.split(":")[0]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert told.keys() == {"instance", "provision_log", "usage_daily", "fleet", "activity"}
    assert "1 event, " in told["provision_log"]
    assert "1 row compared, 0 differ; stopped" in told["provision_log"]
    assert "NOT swapped" in told["fleet"]
    *dropped, failure = sorted(json.loads(pruned.stdout), key=lambda one: "error" in one)
    assert len(dropped) == 5
    assert failure == {"name": "reservation", "error": "Somebody else is rebuilding reservation", "status": 4}


async def test_names_are_those_of_this_release_and_of_the_database(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute(
        "INSERT INTO projection_generation (name, generation, version, tables, state) VALUES ('old', 1, 1, '{}', 'previous')"
    )

    skip_usage = ("skip", "usage", "--lane", "1", "--event", "1", "--reason", "none")
    unknown = [
        await hydracore(database_url, *words) for words in (("prune", "usage"), ("rebuild", "usage"), skip_usage)
    ]
    pruned = await hydracore(database_url, "prune", "--all")

    for one in unknown:
        assert (one.exit_code, "There is no projection 'usage'" in one.stderr) == (2, True)
    assert (pruned.exit_code, pruned.stdout) == (0, "dropped generation 1 of old (previous)\n")


async def test_a_dry_run_keeps_a_build_that_was_broken_off(database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        await write_lives(store, count=2)

    async def break_off(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        raise FoldFailed(build.name, "it was killed")

    with pytest.raises(FoldFailed):
        await rebuild(database_url, InstanceProjection(), folding=break_off, steps=QUIET)

    for _ in range(2):
        dry = await hydracore(database_url, "rebuild", "instance", "--dry-run", "--workers", "1")
        assert dry.stdout.endswith("generation 2, which was broken off before, is kept\n")
    done = await hydracore(database_url, "rebuild", "instance", "--workers", "1")
    assert "generation 2 is live" in done.stdout
    clean = await hydracore(database_url, "rebuild", "instance", "--dry-run", "--workers", "1")
    assert clean.stdout.endswith("nothing that is served changed\n")
    assert (
        await hydracore(database_url, "prune", "instance")
    ).stdout == "dropped generation 1 of instance (previous)\n"
