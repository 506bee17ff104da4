"""`stuck`: what makes no progress, on the command line."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from events.ids import lane_of
from hydracore.cli import main
from tests import lives
from tests.parking import parked
from tests.requests_to_log import open_store, origin, requested
from tests.stack import Stack
from workers.work_schedule import WorkSchedule

ADA = lives.instance_id()


async def stuck(database_url: str, *words: str) -> Result:
    """The command in this process; it has an event loop of its own, so it runs in a thread."""
    env = {"HYDRACORE_DATABASE_URL": database_url}
    return await asyncio.to_thread(CliRunner().invoke, main, ("stuck", *words), env=env)


async def listed(database_url: str, *words: str) -> dict[str, Any]:
    return json.loads((await stuck(database_url, "--json", *words)).stdout)


@pytest.fixture
async def relay(owner_conn: psycopg.AsyncConnection) -> None:
    """The trace of a relay that has just done its duty."""
    await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('health', now())")


async def test_nothing_is_stuck(database_url: str, relay: None) -> None:
    done = await stuck(database_url)

    assert (done.exit_code, done.output) == (0, "nothing is stuck\n")


async def test_without_a_relay_nothing_gets_on(database_url: str, owner_conn: psycopg.AsyncConnection) -> None:
    never = await stuck(database_url)
    await owner_conn.execute("INSERT INTO duty (name, ran_at) VALUES ('health', now() - interval '61 s')")
    gone = await stuck(database_url)

    assert (never.exit_code, never.output) == (1, "relay: none has run yet\n1 stuck\n")
    assert gone.exit_code == 1
    assert re.fullmatch(r"relay: none has run for 0:01:\d\d\n1 stuck\n", gone.output)
    assert not (await listed(database_url, "--after", "3600"))["relay_absent"]


async def test_an_instance_that_no_worker_advances(database_url: str, relay: None) -> None:
    async with open_store(database_url) as (store, _):
        await requested(store)

    done = await stuck(database_url)

    assert done.exit_code == 1
    line, count = done.output.splitlines()
    assert line.startswith(f"instance {ADA} of acme, pending, due for ")
    assert line.endswith(": it waits for its provider or for a worker")
    assert count == "1 stuck"


async def test_an_instance_whose_step_fails(
    database_url: str, owner_conn: psycopg.AsyncConnection, relay: None
) -> None:
    async with open_store(database_url) as (store, pool):
        schedule = WorkSchedule(pool)
        await requested(store)
        await store.execute(ADA, lives.plan(), origin("worker"))
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

        # A failure at an earlier version says nothing of the step that is due now.
        await owner_conn.execute("UPDATE attention SET version = 3 WHERE instance_id = %s", (ADA,))
        [waiting] = (await listed(database_url))["instances"]
        assert (waiting["failures"], waiting["code"], waiting["message"]) == (0, None, None)


async def test_only_what_is_due_for_long_enough_is_shown(
    database_url: str, owner_conn: psycopg.AsyncConnection, relay: None
) -> None:
    async with open_store(database_url) as (store, pool):
        await requested(store)
        await requested(store, key="later")
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
    assert await shown(60) == [], "not due yet"
    assert len((await listed(database_url, "--after", "300"))["instances"]) == 1, "the other one is due all the while"


async def test_servers_that_the_sweep_watches(
    database_url: str, owner_conn: psycopg.AsyncConnection, relay: None
) -> None:
    orphan = "INSERT INTO orphan (provider, server_id, first_seen_at) VALUES ('hetzner', %s, now() - %s::interval)"
    missing = (
        "INSERT INTO missing_server (provider, server_id, first_missed_at) VALUES ('hetzner', %s, now() - %s::interval)"
    )
    await owner_conn.execute(orphan, ("11", "120 s"))
    await owner_conn.execute(orphan, ("12", "10 s"))
    await owner_conn.execute(missing, ("13", "90 s"))

    done = await stuck(database_url)

    assert done.exit_code == 1
    assert re.fullmatch(
        r"server 11 at hetzner: no instance accounts for it, for 0:02:0\d\n"
        r"server 13 at hetzner: its provider does not show it, for 0:01:3\d\n"
        r"2 stuck\n",
        done.output,
    )


async def test_parked_lanes(database_url: str, owner_conn: psycopg.AsyncConnection, relay: None) -> None:
    async with parked(database_url) as (_, _, instance_id):
        await owner_conn.execute("UPDATE instance SET wake_at = NULL")

        done = await stuck(database_url)
        [lane] = (await listed(database_url))["lanes"]

    assert (lane["follower"], lane["lane"]) == ("usage_daily", lane_of(instance_id))
    assert done.exit_code == 1
    assert done.output.startswith(f"lane {lane['lane']} of usage_daily: parked at event {lane['event']}: ")


async def test_a_deletion_that_its_provider_holds_up(stack: Stack) -> None:
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
