"""An instance whose history cannot be read does not delay any other, and loses nothing itself."""

import asyncio
from uuid import UUID, uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from events.ids import lane_of
from tests import lifecycle
from tests.orphan_servers import create_orphan, create_orphan_of, other_installation, record_instance
from tests.stack import Stack
from tests.sweeping import SHORT_GRACE_S
from workers.action_polling import poll_actions
from workers.advance import advance
from workers.health import check_health
from workers.providers.hetzner import HetznerProvider
from workers.sweep import sweep
from workers.unreadable_histories import HISTORY_UNREADABLE

#: A payload that no release writes, and a version that this release cannot know.
BROKEN = {
    "that contradicts itself": b"UPDATE event SET payload = '{}' WHERE version = %s AND stream_id = ANY (%s)",
    "of a later release": b"UPDATE event SET schema_version = 99 WHERE version = %s AND stream_id = ANY (%s)",
}

MISSED_LONG_AGO = "UPDATE missing_server SET first_missed_at = now() - interval '1 day'"


async def break_histories(
    owner_conn: psycopg.AsyncConnection, broken: str, *instance_ids: UUID, version: int = 2
) -> None:
    assert (await owner_conn.execute(BROKEN[broken], (version, list(instance_ids)))).rowcount == len(instance_ids)


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_server_is_observed_even_if_another_instance_s_history_is_unreadable(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection, broken: str
) -> None:
    ours = other_installation()
    servers = [await create_orphan(provider, **ours) for _ in range(2)]
    # The provider has forgotten these actions, so the servers themselves are looked up.
    made = [lifecycle.created(server_id=server_id, action_id=f"99999{server_id}") for server_id in servers]
    async with stack.deps(database_url=database_url) as deps:
        first, second = [await record_instance(deps, number, one) for number, one in enumerate(made)]
    await break_histories(owner_conn, broken, first)

    # In a process that does not remember their histories.
    async with stack.deps(database_url=database_url) as deps:
        with capture_logs() as logs:
            await poll_actions(deps)

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(second,)]
    (alarm,) = [line for line in logs if line["event"] == "history_unreadable"]
    assert (alarm["log_level"], alarm["instance_id"]) == ("error", str(first))
    for server_id in servers:
        await provider.delete_server(server_id)


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_step_on_an_unreadable_history_is_logged_and_retried_after_a_delay(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection, broken: str
) -> None:
    async with stack.deps(database_url=database_url) as deps:
        instance_id = await record_instance(deps, 0)
    await break_histories(owner_conn, broken, instance_id)

    async with stack.deps(database_url=database_url) as deps:
        with capture_logs() as logs:
            await advance(deps, instance_id)
            await advance(deps, instance_id)

    assert [(line["event"], line["instance_id"], "exc_info" in line) for line in logs] == [
        ("history_unreadable", str(instance_id), False)
    ] * 2
    left = await owner_conn.execute("SELECT code, failures, not_before > now() FROM attention")
    assert await left.fetchall() == [(HISTORY_UNREADABLE, 2, True)]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_history_that_becomes_unreadable_during_a_step_is_not_a_failure_of_the_step(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection, broken: str
) -> None:
    async with stack.deps(database_url=database_url) as deps, stack.deps(database_url=database_url) as others:
        instance_id = await record_instance(deps, 0)
        stack.cloudsim.fault("list_servers", "hold_before")
        with capture_logs() as logs:
            looking = asyncio.create_task(advance(deps, instance_id))
            await stack.until(stack.cloudsim.held)
            outcome = await others.store.execute(instance_id, lifecycle.delete(), others.origin(instance_id))
            await break_histories(owner_conn, broken, instance_id, version=outcome.state.version)
            stack.cloudsim.call("POST", "/_sim/release", {"all": True})
            await looking

    assert [(line["event"], line["instance_id"], "exc_info" in line) for line in logs] == [
        ("history_unreadable", str(instance_id), False)
    ]
    left = await owner_conn.execute("SELECT code FROM attention")
    assert await left.fetchall() == [(HISTORY_UNREADABLE,)]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_health_check_of_an_unreadable_history_logs_it_and_does_not_raise(
    stack: Stack, database_url: str, owner_conn: psycopg.AsyncConnection, broken: str
) -> None:
    async with stack.deps(database_url=database_url) as deps:
        instance_id = await record_instance(deps, 0, lifecycle.created(), *lifecycle.RUNNING[len(lifecycle.CREATED) :])
    beat = "INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report) VALUES (%s, %s, now() - interval '1 h', %s, '{}')"
    await owner_conn.execute(beat, (lane_of(instance_id), instance_id, uuid4()))
    await break_histories(owner_conn, broken, instance_id)

    limits = {"heartbeat_interval_s": "15", "heartbeat_late_s": "45", "heartbeat_lost_s": "90"}
    async with stack.deps(database_url=database_url, **limits) as deps:
        with capture_logs() as logs:
            await check_health(deps, instance_id)

    assert [(line["event"], line["instance_id"]) for line in logs] == [("history_unreadable", str(instance_id))]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_sweep_leaves_servers_of_unreadable_histories_alone_and_handles_all_others(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection, broken: str
) -> None:
    ours = other_installation()
    settings = {"database_url": database_url, "installation": ours["hc-installation"], "orphan_grace_s": SHORT_GRACE_S}
    relabelled = await create_orphan(provider, **ours)
    rest = lifecycle.RUNNING[len(lifecycle.CREATED) :]
    async with stack.deps(**settings) as deps:
        unreadable = [
            await record_instance(deps, 0),
            await record_instance(deps, 1, lifecycle.created(server_id=relabelled), *rest),
            await record_instance(deps, 2, lifecycle.created(server_id="9999999998"), *rest),
        ]
        lost = await record_instance(deps, 3, lifecycle.created(server_id="9999999999"), *rest)
        finished = await record_instance(deps, 4, lifecycle.failed(), lifecycle.discarded(), lifecycle.plan(2))
    await break_histories(owner_conn, broken, *unreadable)
    doubted = await create_orphan_of(provider, unreadable[0], **ours, **{"hc-attempt": "7"})
    orphan = await create_orphan_of(provider, finished, **ours)

    seen = list[dict[str, tuple[str, str, str | None]]]()
    async with stack.deps(**settings) as deps:
        for _ in range(2):
            swept = await sweep(deps, dry_run=False)
            assert not swept.is_complete
            seen.append({one.server_id: (one.kind, one.action, one.code) for one in swept.findings})
            await owner_conn.execute(MISSED_LONG_AGO)

    always = {
        doubted: ("unreadable", "left alone", HISTORY_UNREADABLE),
        relabelled: ("wrong_labels", "could not be labelled again", HISTORY_UNREADABLE),
    }
    watched = dict.fromkeys(("9999999998", "9999999999"), ("vanished", "watched", None))
    assert seen[0] == always | watched | {orphan: ("orphan", "watched", None)}
    assert seen[1] == always | {
        "9999999998": ("vanished", "could not be reported", HISTORY_UNREADABLE),
        "9999999999": ("vanished", "reported", None),
        orphan: ("orphan", "removed", None),
    }
    status = await (await owner_conn.execute("SELECT status FROM instance WHERE id = %s", (lost,))).fetchone()
    assert status == ("error",)
    assert await provider.get_server(doubted) is not None
    for server_id in (doubted, relabelled):
        await provider.delete_server(server_id)
