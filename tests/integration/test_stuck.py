"""`stuck`: what makes no progress, on the command line."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
import psycopg
import pytest
from click.testing import CliRunner, Result

from events.ids import lane_of
from hydracore.cli import main
from tests import lifecycle
from tests.orphan_servers import create_orphan
from tests.parked_lanes import log_with_parked_lane
from tests.stack import Stack
from tests.store_commands import create_instance, open_store, origin
from tests.sweeping import sweep_findings as found_by_sweep
from workers.orphans import UNACCOUNTED_MAX
from workers.providers.hetzner import HetznerProvider
from workers.sweep_findings import Finding, SweepReport, SweepResult
from workers.work_schedule import WorkSchedule

ADA = lifecycle.instance_id()

SWEPT = """INSERT INTO last_sweep (ended_at, result) VALUES (now(), '{"servers": [], "servers_count": 0, "providers": []}')"""


async def stuck(database_url: str, *words: str) -> Result:
    """The command in this process; it has an event loop of its own, so it runs in a thread."""
    env = {"HYDRACORE_DATABASE_URL": database_url}
    return await asyncio.to_thread(CliRunner().invoke, main, ("stuck", *words), env=env)


async def listed(database_url: str, *words: str) -> dict[str, Any]:
    return json.loads((await stuck(database_url, "--json", *words)).stdout)


@pytest.fixture
async def parts(owner_conn: psycopg.AsyncConnection) -> None:
    """The traces of a relay that has just done its duty, and of a sweep that has just ended."""
    await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('health', now())")
    await owner_conn.execute(SWEPT)


async def test_stuck_says_so_if_nothing_is_stuck(database_url: str, parts: None) -> None:
    done = await stuck(database_url)

    assert (done.exit_code, done.output) == (0, "nothing is stuck\n")


async def test_stuck_reports_a_missing_relay_and_a_missing_sweep(
    database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    never = await stuck(database_url)
    await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('health', now() - interval '61 s')")
    await owner_conn.execute(SWEPT)
    await owner_conn.execute("UPDATE last_sweep SET ended_at = now() - interval '181 s'")
    gone = await stuck(database_url)
    later = await listed(database_url, "--after", "3600")

    assert (never.exit_code, never.output) == (1, "relay: none has run yet\nsweep: none has ended yet\n2 stuck\n")
    assert gone.exit_code == 1
    lines = r"relay: none has run for 0:01:\d\d\nsweep: none has ended for 0:03:\d\d\n2 stuck\n"
    assert re.fullmatch(lines, gone.output)
    assert (later["relay_absent"], later["sweep_absent"]) == (False, False)


async def test_stuck_reports_an_instance_that_no_worker_advances(database_url: str, parts: None) -> None:
    async with open_store(database_url) as (store, _):
        await create_instance(store)

    done = await stuck(database_url)

    assert done.exit_code == 1
    line, count = done.output.splitlines()
    assert line.startswith(f"instance {ADA} of acme, pending, due for ")
    assert line.endswith(": it waits for its provider or for a worker")
    assert count == "1 stuck"


async def test_stuck_reports_an_instance_whose_step_fails(
    database_url: str, owner_conn: psycopg.AsyncConnection, parts: None
) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await create_instance(store)
        await store.execute(ADA, lifecycle.plan(), origin("worker"))
        for _ in range(2):
            await schedule.record_failure(ADA, version=4, code="no_address", delay_s=60)

        [failing] = (await listed(database_url))["instances"]
        shown = await stuck(database_url)

        facts = {name: failing[name] for name in ("id", "tenant_id", "status", "failures", "code")}
        assert facts == {
            "id": str(ADA),
            "tenant_id": "acme",
            "status": "provisioning",
            "failures": 2,
            "code": "no_address",
        }
        assert f": 2 failures: no_address ({failing['message']})" in shown.stdout

        # A failure at an earlier version does not concern the step that is due now.
        await owner_conn.execute("UPDATE attention SET version = 3 WHERE instance_id = %s", (ADA,))
        [waiting] = (await listed(database_url))["instances"]
        assert (waiting["failures"], waiting["code"], waiting["message"]) == (0, None, None)


async def test_stuck_reports_only_instances_that_have_been_due_or_failing_for_long_enough(
    database_url: str, owner_conn: psycopg.AsyncConnection, parts: None
) -> None:
    async with open_store(database_url) as (store, pool):
        await create_instance(store)
        await create_instance(store, key="later")
        await WorkSchedule(pool).record_failure(ADA, version=1, code="no_address", delay_s=60)
    due = "UPDATE instance SET wake_at = now() + %s * interval '1 s' WHERE id = %s"

    async def shown(seconds: float) -> list[str]:
        await owner_conn.execute(due, (seconds, ADA))
        return [
            one["id"] for one in (await listed(database_url, "--after", "300"))["instances"] if one["id"] == str(ADA)
        ]

    assert await shown(-200) == [], "due for too short a time"
    assert await shown(-400) == [str(ADA)]
    # Its alarm moved the time at which the step was due, not the time since when it fails.
    await owner_conn.execute("UPDATE attention SET failing_since = now() - interval '400 s'")
    assert await shown(-1) == [str(ADA)]
    assert await shown(60) == [str(ADA)], "its step fails all the while, but was recorded by a clock that is ahead"
    await owner_conn.execute("DELETE FROM attention")
    assert await shown(60) == [], "not due yet"
    assert len((await listed(database_url, "--after", "300"))["instances"]) == 1, (
        "the other instance is due all the while"
    )


async def test_stuck_says_so_if_more_instances_are_stuck_than_it_lists(
    database_url: str, owner_conn: psycopg.AsyncConnection, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.stuck.INSTANCES_MAX", 1)
    async with open_store(database_url) as (store, _):
        for key in ("first", "second"):
            await create_instance(store, key=key)

    done = await stuck(database_url)
    found = await listed(database_url)

    assert done.output.endswith("\nmore than 1 stuck\n")
    assert (len(found["instances"]), found["is_complete"]) == (1, False)


async def test_stuck_says_so_if_a_sweep_left_more_servers_than_are_stored(
    database_url: str, owner_conn: psycopg.AsyncConnection, parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sweep_findings.SERVERS_LEFT_MAX", 1)
    left = [Finding("cloudsim", "orphan", server_id, None, "left alone: unknown to the log") for server_id in "12"]
    kept = msgspec.json.encode(SweepResult.of(SweepReport(left, [])))
    await owner_conn.execute("UPDATE last_sweep SET result = %s", (kept.decode(),))

    done = await stuck(database_url)
    found = await listed(database_url)

    assert done.output.endswith("\nmore than 1 stuck\n")
    assert ([each["server_id"] for each in found["servers"]], found["is_complete"]) == (["1"], False)


async def test_stuck_reports_parked_lanes(database_url: str, owner_conn: psycopg.AsyncConnection, parts: None) -> None:
    async with log_with_parked_lane(database_url) as (_, _, instance_id):
        await owner_conn.execute("UPDATE instance SET wake_at = NULL")

        done = await stuck(database_url)
        [lane] = (await listed(database_url))["lanes"]

    assert (lane["follower"], lane["lane"]) == ("usage_daily", lane_of(instance_id))
    assert done.exit_code == 1
    assert done.output.startswith(f"lane {lane['lane']} of usage_daily: parked at event {lane['event']}: ")


async def test_stuck_reports_servers_and_providers_that_the_sweep_leaves_to_an_operator(
    stack: Stack, provider: HetznerProvider
) -> None:
    watched = await create_orphan(provider)
    database_url = stack.environ()["HYDRACORE_DATABASE_URL"]
    await found_by_sweep(stack, watched)
    few = await listed(database_url)
    unknown = [await create_orphan(provider) for _ in range(UNACCOUNTED_MAX)]
    await found_by_sweep(stack, watched)

    many, shown = await listed(database_url), await stuck(database_url)
    stack.cloudsim.fault("list_servers", "error", status=401, code="unauthorized", times=None)
    await found_by_sweep(stack, watched)
    refused = await listed(database_url)

    assert watched not in {each["server_id"] for each in few["servers"]}, "it is removed after the grace period"
    assert few["providers"] == []
    left = {(each["server_id"], each["kind"], each["action"]) for each in many["servers"]}
    assert {(f"{server}", "orphan", "left alone: unknown to the log") for server in [watched, *unknown]} <= left
    assert [each["provider"] for each in many["providers"]] == ["cloudsim"]
    line = rf"^server {watched} at cloudsim, named after instance \S+: orphan: left alone: unknown to the log$"
    assert re.search(line, shown.stdout, re.MULTILINE)
    assert refused["providers"] == [{"provider": "cloudsim", "why": "unauthorized"}]
    for server in (watched, *unknown):
        stack.cloudsim.call("POST", f"/_sim/servers/{server}/vanish")


async def test_stuck_reports_a_deletion_that_its_provider_refuses(stack: Stack) -> None:
    instance_id = await stack.running()
    stack.cloudsim.fault("delete_server", "error", status=423, code="locked", times=None)
    database_url = stack.environ()["HYDRACORE_DATABASE_URL"]
    await stack.delete(instance_id)

    async def found() -> list[dict[str, Any]]:
        instances = (await listed(database_url, "--after", "0"))["instances"]
        return [one for one in instances if one["id"] == str(instance_id) and one["failures"]]

    await stack.until(found)

    [held_up] = await found()
    assert (held_up["status"], held_up["provider"], held_up["code"]) == ("deleting", "cloudsim", "locked")
