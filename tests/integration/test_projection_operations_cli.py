"""What the command line reports about projections, what it refuses, and with which exit status."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from events.ids import lane_of
from projections import operations
from projections.activity_queries import tenant_activity
from projections.errors import FoldFailed
from projections.fleet_queries import fleet_counts
from projections.instance import InstanceProjection
from projections.rebuild import rebuild
from tests.parked_lanes import log_with_parked_lane, usage_seq
from tests.rebuilding import QUIET, fold_here, follow_all, run_projections_command, write_instances
from tests.store_commands import create_instance, open_store
from tests.waiting import until


async def test_fleet_counts_instances_and_activity_counts_commands_by_actor(database_url: str) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=8)
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


async def test_status_shows_unfollowed_projections_as_behind_and_unbuilt_ones_as_needing_a_rebuild(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, _):
        await create_instance(store)
    for name in ("fleet", "reservation"):
        await owner_conn.execute("DELETE FROM projection WHERE name = %s", (name,))
        await owner_conn.execute("DELETE FROM projection_generation WHERE name = %s", (name,))

    found = {one.name: one for one in await operations.status(owner_conn, sample_s=0)}
    told = (await run_projections_command(database_url, "status")).stdout.splitlines()

    assert {name: one.behind for name, one in found.items() if one.behind} == {
        "usage_daily": 1,
        "fleet": 1,
        "activity": 1,
    }
    assert found["activity"].behind_s > 0
    assert "fleet: version none, generation none, 1 behind, 0 events/s; version 1 needs `rebuild`" in told
    assert "reservation: version none, generation none, 0 behind, 0 events/s; version 1 needs `rebuild`" in told


async def test_only_inline_projections_show_a_speed_while_no_follower_runs(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    stop, found = asyncio.Event(), set[str]()

    async def write() -> None:
        async with open_store(database_url) as (store, _):
            for number in itertools.count():
                if stop.is_set():
                    return
                await create_instance(store, customer_id=f"customer-{number}")

    async def are_fast() -> set[str]:
        found.update(one.name for one in await operations.status(owner_conn, sample_s=0.1) if one.events_per_s > 0)
        return found

    writing = asyncio.create_task(write())
    try:
        await until(are_fast)
    finally:
        stop.set()
        await writing

    assert found == {"instance", "provision_log", "reservation"}


async def test_projection_commands_report_their_results_in_output_and_exit_status(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with log_with_parked_lane(database_url) as (_, _, refused):
        listed = await run_projections_command(database_url, "list", "--json")
        stuck = await run_projections_command(database_url, "status", "usage_daily")
        (told,) = json.loads((await run_projections_command(database_url, "status", "usage_daily", "--json")).stdout)[
            0
        ]["parked"]
        lane = str(lane_of(refused))
        seq = str(await usage_seq(owner_conn, refused, 2))
        blank = await run_projections_command(
            database_url, "skip", "usage_daily", "--lane", lane, "--event", seq, "--reason", " "
        )
        words = ("skip", "usage_daily", "--lane", lane, "--event", seq, "--reason", "ticket 7")
        done = await run_projections_command(database_url, *words, "--json")
        again = await run_projections_command(database_url, *words)
        elsewhere = await run_projections_command(database_url, *words, "--version", "2")
        back = await run_projections_command(database_url, "unskip", *words[1:])

        names = {one["name"]: (one["version"], one["generation"], one["kind"]) for one in json.loads(listed.stdout)}
        assert names["fleet"] == (1, 1, "followed")
        assert names["instance"] == (1, 1, "inline")
        assert (stuck.exit_code, "ValueError" in stuck.stdout) == (5, True)
        assert f"parked at event {seq}: " in stuck.stdout
        assert "hydracore projections retry" in stuck.stdout
        assert (str(told["event"]), told["seq"]) == (seq, told["event"] - 1)
        assert (blank.exit_code, "Invalid value for '--reason': must not be blank" in blank.stderr) == (2, True)
        assert json.loads(done.stdout)["action"] == "skip"
        assert (again.exit_code, again.stderr.startswith("hydracore: Lane")) == (3, True)
        assert (back.exit_code, "will be applied by the next rebuild in version 1" in back.stdout) == (0, True)
        assert (elsewhere.exit_code, "it has no unfinished build" in elsewhere.stderr) == (3, True)

        await owner_conn.execute("UPDATE instance SET agent_name = 'Eve' WHERE id = %s", (refused,))
        dry = await run_projections_command(
            database_url, "rebuild", "instance", "--dry-run", "--workers", "1", "--json"
        )
        report: dict[str, Any] = json.loads(dry.stdout)[0]
        assert (dry.exit_code, report["drifted"], report["drift"][0]["live"]) == (1, 1, {"agent_name": "Eve"})
        accepted = await run_projections_command(
            database_url, "rebuild", "instance", "--accept-drift", "--workers", "1", "--json"
        )
        (put,) = json.loads(accepted.stdout)
        assert (accepted.exit_code, put["generation"], put["swapped"], report["swapped"]) == (0, 2, True, False), (
            accepted
        )
        assert (await run_projections_command(database_url, "rebuild", "--outdated")).stdout == "nothing is outdated\n"
        assert (await run_projections_command(database_url, "rebuild", "nothing")).exit_code == 2
        assert "generation 1" in (await run_projections_command(database_url, "rollback", "instance")).stdout
        assert "dropped generation 2" in (await run_projections_command(database_url, "prune", "--all")).stdout


async def test_a_failure_of_one_projection_does_not_hide_the_reports_of_the_others(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    async with open_store(database_url) as (store, pool):
        await write_instances(store, count=1)
        await follow_all(pool)
    busy = b"SELECT pg_advisory_lock(hashtextextended('hydracore projection reservation', 0))"
    await owner_conn.execute(busy)
    await owner_conn.execute("UPDATE fleet SET entries = 7")

    done = await run_projections_command(database_url, "rebuild", "--all", "--workers", "1")
    pruned = await run_projections_command(database_url, "prune", "--all", "--json")

    assert done.exit_code == pruned.exit_code == 4
    assert done.stderr == "hydracore: Another rebuild of reservation is running\n"
    told = {line.split(":")[0]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert told.keys() == {"instance", "provision_log", "usage_daily", "fleet", "activity"}
    assert "1 event, " in told["provision_log"]
    assert "1 row compared, 0 differ; the swap held up writers for" in told["provision_log"]
    assert "NOT swapped" in told["fleet"]
    assert "--accept-drift" in told["fleet"]
    *dropped, failure = sorted(json.loads(pruned.stdout), key=lambda one: "error" in one)
    assert len(dropped) == 5
    assert failure == {"name": "reservation", "error": "Another rebuild of reservation is running", "status": 4}


async def test_commands_know_the_projections_of_this_release_and_of_the_database_only(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute(
        "INSERT INTO projection_generation (name, generation, version, tables, state) VALUES ('old', 1, 1, '{}', 'previous')"
    )

    skip_usage = ("skip", "usage", "--lane", "1", "--event", "1", "--reason", "none")
    unknown = [
        await run_projections_command(database_url, *words)
        for words in (("prune", "usage"), ("rebuild", "usage"), skip_usage)
    ]
    pruned = await run_projections_command(database_url, "prune", "--all")

    for one in unknown:
        assert (one.exit_code, "There is no projection 'usage'" in one.stderr) == (2, True)
    assert (pruned.exit_code, pruned.stdout) == (0, "dropped generation 1 of old (previous)\n")


async def test_a_lane_of_a_projection_that_is_not_live_is_reported_as_neither_parked_nor_skipped(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("DELETE FROM projection WHERE name = 'fleet'")

    told = [
        await run_projections_command(database_url, word, "fleet", "--lane", "1", "--event", "1", "--reason", "none")
        for word in ("skip", "retry", "unskip")
    ]

    assert [one.exit_code for one in told] == [3, 3, 3]
    assert [one.stderr for one in told] == [
        "hydracore: Lane 1 of fleet is not parked\n",
        "hydracore: Lane 1 of fleet is not parked\n",
        "hydracore: Event 1 of lane 1 is not skipped in the live version of fleet\n",
    ]


async def test_a_dry_run_keeps_an_interrupted_build(database_url: str) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)

    async def fail(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        raise FoldFailed(build.name, "it was killed")

    with pytest.raises(FoldFailed):
        await rebuild(database_url, InstanceProjection(), folding=fail, callbacks=QUIET)

    for _ in range(2):
        dry = await run_projections_command(database_url, "rebuild", "instance", "--dry-run", "--workers", "1")
        assert dry.stdout.endswith("the interrupted build of generation 2 is kept\n")
    done = await run_projections_command(database_url, "rebuild", "instance", "--workers", "1")
    assert "generation 2 is live" in done.stdout
    clean = await run_projections_command(database_url, "rebuild", "instance", "--dry-run", "--workers", "1")
    assert clean.stdout.endswith("no live table was changed\n")
    assert (
        await run_projections_command(database_url, "prune", "instance")
    ).stdout == "dropped generation 1 of instance (previous)\n"


async def test_a_resumed_rebuild_reports_no_speed_for_events_that_an_earlier_run_folded(
    database_url: str,
) -> None:
    async with open_store(database_url) as (store, _):
        await write_instances(store, count=2)

    async def fail_after_the_fold(projection, build, progress) -> None:  # noqa: ANN001 - as Folding has it
        await fold_here(database_url)(projection, build, progress)
        raise FoldFailed(build.name, "it was killed")

    with pytest.raises(FoldFailed):
        await rebuild(database_url, InstanceProjection(), folding=fail_after_the_fold, callbacks=QUIET)

    done = await run_projections_command(database_url, "rebuild", "instance", "--workers", "1")

    assert "generation 2 is live; " in done.stdout
    assert "events/s" not in done.stdout
