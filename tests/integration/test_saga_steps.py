"""Steps of a saga one by one, in a database that no worker uses: what each waits for, how long, and what not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from events import commands as c
from events import committer
from events.errors import StoreUnavailable
from events.state import TEARDOWN_STEPS, Instance
from hydracore.agent.messages import AgentStatus
from tests import lifecycle
from tests.instance_fixtures import free_host
from tests.orphan_servers import create_orphan
from tests.stack import Stack
from tests.tiny_agent import TinyAgent, serving
from tests.waiting import until
from workers.advance import advance
from workers.deps import Deps
from workers.health import record_first_heartbeat
from workers.placement import free_address
from workers.providers.hetzner import HetznerProvider
from workers.teardown import DRAIN_S_MAX

ADA = lifecycle.instance_id()
PROVIDER_TIMEOUT_S, QUARANTINE_S, BOOT_TIMEOUT_S = 30, 3600, 900

PAUSE = "SELECT code, extract(epoch FROM not_before - now())::float8 FROM attention WHERE instance_id = %s"
ALWAYS_HEARD = "INSERT INTO hearing (since, until) VALUES (now() - interval '1 day', now())"
FREED = "INSERT INTO reservation VALUES ('vpn_ip', %s, gen_random_uuid(), 1, now(), now())"
FREED_LONG_AGO = "UPDATE reservation SET released_at = now() - %s * interval '1 s'"


@pytest.fixture(name="deps")
async def deps_fixture(stack: Stack, database_url: str) -> AsyncGenerator[Deps]:
    settings = {
        "provider_timeout_s": str(PROVIDER_TIMEOUT_S),
        "address_quarantine_s": str(QUARANTINE_S),
        "teardown_alarm_s": "60",
    }
    async with stack.deps(database_url=database_url, **settings) as opened:
        yield opened


async def give(deps: Deps, *commands: c.AnyCommand, ago_s: float = 0) -> Instance:
    """Ada's instance after `commands`, which were given this long ago."""
    at_ms = deps.now_ms() - int(ago_s * 1000)
    for command in commands:
        changed: dict[str, Any] = {"at_ms": at_ms}
        if isinstance(command, c.PlanServer):
            changed |= {
                "enrol_expires_ms": at_ms + lifecycle.ENROL_TTL_MS,
                "deadline_ms": at_ms + BOOT_TIMEOUT_S * 1000,
            }
        await deps.store.execute(ADA, replace(command, **changed), deps.origin(ADA))
    return await current(deps)


async def advanced(deps: Deps) -> Instance:
    await advance(deps, ADA)
    return await current(deps)


async def current(deps: Deps) -> Instance:
    state = await deps.store.load(ADA)
    assert state is not None
    return state


async def pause(connection: psycopg.AsyncConnection) -> tuple[str | None, float]:
    """Why, and for how many seconds, the instance's next step is delayed."""
    return await (await connection.execute(PAUSE, (ADA,))).fetchone() or (None, 0.0)


def with_agent_at(host: str, *commands: c.AnyCommand) -> list[c.AnyCommand]:
    """`commands` for an instance whose agent is at `host`."""
    return [replace(each, vpn_ip=host) if isinstance(each, c.PlanServer) else each for each in commands]


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_step_that_raises_is_delayed_and_reported_as_an_internal_error(
    deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    await give(
        deps, lifecycle.request(), lifecycle.plan(), lifecycle.created(server_id="no number"), lifecycle.delete()
    )

    with capture_logs() as said:
        state = await advanced(deps)

    assert (state.status, state.teardown_step, state.teardown_blocked) == ("deleting", "server_deleted", None)
    code, pause_s = await pause(owner_conn)
    assert (code, pause_s > 0) == ("internal_error", True)
    assert ("step_broke", "TearDown") in {(line["event"], line.get("step")) for line in said}


async def test_a_teardown_alarm_neither_retries_at_once_nor_restarts_the_count_of_failures(
    deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    going = (lifecycle.delete(), *map(lifecycle.teardown, ("key_revoked", "drained")))
    await give(deps, lifecycle.request(), lifecycle.plan(), lifecycle.created(server_id="no number"), *going, ago_s=100)
    for failures in (1, 2):
        state = await advanced(deps)

        assert state.teardown_blocked == "server_deleted"
        counted = await owner_conn.execute("SELECT failures, version FROM attention")
        assert await counted.fetchall() == [(failures, state.version)]


async def test_an_unavailable_store_is_not_recorded_as_a_failure_of_the_step(
    deps: Deps, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give(deps, lifecycle.request())
    monkeypatch.setattr(committer, "QUEUE_MAX", 0)

    with capture_logs() as said, pytest.raises(StoreUnavailable):
        await advance(deps, ADA)

    assert said == []
    assert await pause(owner_conn) == (None, 0.0)


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [lifecycle.failed(), lifecycle.delete()], ids=["a failed attempt", "a deletion"])
async def test_a_create_that_may_still_be_in_transit_is_waited_for(
    deps: Deps, owner_conn: psycopg.AsyncConnection, end: c.AnyCommand
) -> None:
    await give(deps, lifecycle.request(), lifecycle.plan(), end)

    state = await advanced(deps)

    assert state.attempt is not None
    assert state.attempt.may_have_server
    _, pause_s = await pause(owner_conn)
    assert PROVIDER_TIMEOUT_S / 2 < pause_s <= PROVIDER_TIMEOUT_S


async def test_the_enrol_token_and_the_boot_deadline_of_a_server_last_as_long_as_configured(
    stack: Stack, deps: Deps
) -> None:
    stack.cloudsim.fault("create_server", "rate_limit", name=f"hc-{ADA}", retry_after_s=3600)
    await give(deps, lifecycle.request())

    state = await advanced(deps)

    attempt = state.attempt
    assert attempt is not None
    assert attempt.intended_ms is not None
    assert attempt.enrol_expires_ms - attempt.intended_ms == deps.settings.enrol_ttl_s * 1000
    assert attempt.deadline_ms == attempt.intended_ms + deps.settings.boot_timeout_s * 1000


async def test_a_server_that_cannot_be_created_within_the_boot_timeout_is_given_up(
    stack: Stack, deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    stack.cloudsim.fault("create_server", "no_capacity", name=f"hc-{ADA}")
    await owner_conn.execute(ALWAYS_HEARD)
    await give(deps, lifecycle.request(), lifecycle.plan(), ago_s=BOOT_TIMEOUT_S + 1)

    state = await advanced(deps)

    assert state.attempt is not None
    assert state.attempt.failure == "boot_timeout"
    stack.cloudsim.call("DELETE", "/_sim/faults")


async def test_a_refused_create_is_settled_once_the_provider_can_list_servers(
    stack: Stack, deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    stack.cloudsim.fault("list_servers", "server_error")
    await give(deps, lifecycle.request(), lifecycle.plan(), lifecycle.failed(nothing_made=True, retryable=False))

    unseen = await advanced(deps)
    why, _ = await pause(owner_conn)
    seen = await advanced(deps)
    stack.cloudsim.fault("list_servers", "server_error")
    await give(deps, lifecycle.delete())
    leaving = await advanced(deps)

    assert unseen.attempt is not None
    assert (unseen.attempt.discarded, why) == (False, "server_error")
    assert seen.status == "failed"
    assert (leaving.status, leaving.teardown_step) == ("deleting", "server_deleted")


@pytest.mark.parametrize(
    "at", ["cloudsim", "elsewhere"], ids=["a provider that refuses", "a provider that is no longer set up"]
)
async def test_a_deletion_with_nothing_created_does_not_wait_for_an_unusable_provider(
    stack: Stack, deps: Deps, at: str
) -> None:
    stack.cloudsim.fault("list_servers", "error", status=401, code="unauthorized", times=None)
    refused = (lifecycle.failed(nothing_made=True, retryable=False), lifecycle.discarded(), lifecycle.gave_up())
    await give(deps, lifecycle.request(), lifecycle.plan(provider=at), *refused, lifecycle.delete())

    state = await advanced(deps)

    assert state.status == "deleted"


async def test_a_server_with_the_recorded_id_but_another_name_is_not_deleted(
    deps: Deps, provider: HetznerProvider
) -> None:
    theirs = await create_orphan(provider)
    await give(deps, lifecycle.request(), lifecycle.plan(), lifecycle.created(server_id=theirs), lifecycle.delete())

    state = await advanced(deps)

    assert "server_deleted" in state.teardown_done
    server = await provider.get_server(theirs)
    assert server is not None
    assert server.status != "deleting"
    await provider.delete_server(theirs)


async def test_a_long_retry_after_of_a_provider_delays_an_instance_by_about_a_minute_at_most(
    stack: Stack, deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    stack.cloudsim.fault("create_server", "rate_limit", name=f"hc-{ADA}", retry_after_s=3600)
    await give(deps, lifecycle.request())

    await advanced(deps)

    code, pause_s = await pause(owner_conn)
    assert code == "rate_limit_exceeded"
    # A minute, and up to a quarter of it at random.
    assert pause_s <= 75


async def test_a_released_address_is_not_assigned_again_during_its_quarantine(
    deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    state = await give(deps, lifecycle.request())
    address = await free_address(deps, state)

    await owner_conn.execute(FREED, (address,))
    assert await free_address(deps, state) not in {address, None}

    await owner_conn.execute(FREED_LONG_AGO, (QUARANTINE_S + 1,))
    assert await free_address(deps, state) == address


# --- agents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [{"instance_id": str(UUID(int=7))}, {"attempt": 2}, {"healthy": False}],
    ids=["of another instance", "of another attempt", "not healthy"],
)
async def test_only_a_healthy_agent_of_the_same_instance_and_attempt_makes_it_ready(
    deps: Deps, owner_conn: psycopg.AsyncConnection, changed: dict[str, Any]
) -> None:
    host, agent = free_host(), TinyAgent(ADA)
    agent.script("/api/status", 200, agent._status() | changed)
    await give(deps, *with_agent_at(host, *lifecycle.HEALTHY))

    async with serving(agent, host):
        unready = await advanced(deps)
        why, _ = await pause(owner_conn)
        ready = await advanced(deps)

    assert (unready.status, why) == ("provisioning", "attempt_unverified")
    assert ready.status == "running"


async def test_an_agent_that_answers_after_a_deletion_was_requested_is_not_logged_as_ready(deps: Deps) -> None:
    host, agent = free_host(), TinyAgent(ADA)
    agent.may_answer.clear()
    await give(deps, *with_agent_at(host, *lifecycle.HEALTHY))

    async with serving(agent, host):
        with capture_logs() as said:
            advancing = asyncio.create_task(advance(deps, ADA))
            await until(lambda: agent.calls_of("/api/status"))
            await give(deps, lifecycle.delete())
            agent.may_answer.set()
            await advancing

    assert "instance_ready" not in {line["event"] for line in said}


@pytest.mark.parametrize(
    ("told", "ago_s", "waits", "is_cut"),
    [
        ({"active_connections": 1}, 0, True, False),
        ({"active_connections": 0, "usage_unsent": True}, 0, True, False),
        ({"active_connections": 0}, 0, False, False),
        ({"active_connections": 0}, DRAIN_S_MAX + 1, False, False),
        ({"active_connections": 1, "usage_unsent": True}, DRAIN_S_MAX + 1, False, True),
    ],
    ids=["an open chat", "unsent usage", "nothing", "nothing after the limit", "both after the limit"],
)
async def test_a_deletion_waits_for_chats_and_unsent_usage_up_to_a_limit(
    deps: Deps, told: dict[str, Any], ago_s: float, *, waits: bool, is_cut: bool
) -> None:
    host, agent = free_host(), TinyAgent(ADA)
    for _ in range(1 + is_cut):
        agent.script("/api/drain", 200, told)
    await give(deps, *with_agent_at(host, *lifecycle.RUNNING))
    await give(deps, lifecycle.delete(), lifecycle.teardown("key_revoked"), ago_s=ago_s)

    async with serving(agent, host):
        state = await advanced(deps)

    assert ("drained" not in state.teardown_done) == waits
    assert [call.body for call in agent.calls_of("/api/drain")] == [None, {"cut": True}][: 1 + is_cut]


async def test_a_deletion_does_not_wait_for_an_unreachable_agent(deps: Deps) -> None:
    await give(deps, *with_agent_at(free_host(), *lifecycle.RUNNING), lifecycle.health("unreachable"))
    await give(deps, lifecycle.delete(), lifecycle.teardown("key_revoked"))

    state = await advanced(deps)

    assert "drained" in state.teardown_done


async def test_a_late_worker_records_no_heartbeat_of_a_deleted_instance(
    deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    status = msgspec.convert(TinyAgent(ADA)._status(), AgentStatus)
    await give(
        deps, lifecycle.request(), lifecycle.delete(), *map(lifecycle.teardown, TEARDOWN_STEPS), lifecycle.finish()
    )

    await record_first_heartbeat(deps, ADA, status)

    assert await (await owner_conn.execute("SELECT report FROM heartbeat")).fetchall() == []


async def test_chats_get_their_time_to_end_even_if_the_deletion_began_on_a_clock_that_is_ahead(
    deps: Deps, owner_conn: psycopg.AsyncConnection
) -> None:
    host, agent = free_host(), TinyAgent(ADA)
    for _ in range(2):
        agent.script("/api/drain", 200, {"active_connections": 1})
    await give(deps, *with_agent_at(host, *lifecycle.RUNNING))
    # Given by a worker whose clock is an hour ahead.
    await give(deps, lifecycle.delete(), lifecycle.teardown("key_revoked"), ago_s=-3600)

    async with serving(agent, host):
        await advance(deps, ADA, limit_s=DRAIN_S_MAX / 10)
    why, _ = await pause(owner_conn)

    # It waited, and reached the step's time limit.
    assert (why, [call.body for call in agent.calls_of("/api/drain")]) == ("took_too_long", [None])
