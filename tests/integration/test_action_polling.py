"""Polling of the servers that are being made."""

from contextlib import aclosing
from dataclasses import replace

import psycopg
import pytest
from structlog.testing import capture_logs

from hydracore.embedded.ports import free_port
from tests import lifecycle
from tests.cloudsim_fixtures import PUBLIC_KEY, TOKEN
from tests.hetzner_calls import wait_until_running
from tests.orphan_servers import create_orphan, other_installation, record_instance
from tests.stack import Stack
from workers import action_polling
from workers.action_polling import poll_actions
from workers.providers.hetzner import HetznerProvider


async def test_a_server_is_observed_even_if_the_provider_call_for_another_one_fails(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    servers = [await create_orphan(provider, **other_installation()) for _ in range(2)]
    async with stack.deps(database_url=database_url) as deps:
        # The provider has forgotten their actions, so that the servers themselves are asked for.
        made = [lifecycle.created(server_id=server_id, action_id=f"99999{server_id}") for server_id in servers]
        first, second = [await record_instance(deps, number, one) for number, one in enumerate(made)]
        stack.cloudsim.fault("get_server", "error", server_id=int(servers[0]), times=None)

        with capture_logs() as logs:
            await poll_actions(deps)

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(second,)]
    assert [(line["event"], line["instance_id"], line["code"]) for line in logs] == [
        ("observation_failed", str(first), "invalid_input")
    ]
    for server_id in servers:
        await provider.delete_server(server_id)


async def test_an_instance_row_without_a_stream_keeps_no_other_server_from_being_observed(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    servers = [await create_orphan(provider, **other_installation()) for _ in range(2)]
    async with stack.deps(database_url=database_url) as deps:
        made = [lifecycle.created(server_id=server_id, action_id=f"99999{server_id}") for server_id in servers]
        first, second = [await record_instance(deps, number, one) for number, one in enumerate(made)]
        await owner_conn.execute("UPDATE instance SET id = gen_random_uuid() WHERE id = %s", (first,))
        for server_id in servers:
            await wait_until_running(provider, server_id)

        with capture_logs() as logs:
            await poll_actions(deps)

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(second,)]
    assert [line["event"] for line in logs] == ["row_without_stream"]
    for server_id in servers:
        await provider.delete_server(server_id)


async def test_a_server_is_not_given_up_because_one_poll_misses_it(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    server_id = await create_orphan(provider, **other_installation())
    newest = "SELECT type FROM event ORDER BY version DESC LIMIT 1"
    told = list[object]()
    async with stack.deps(database_url=database_url) as deps:
        # The provider has forgotten this action, too.
        await record_instance(deps, 0, lifecycle.created(server_id=server_id, action_id=f"99999{server_id}"))
        stack.cloudsim.fault("get_server", "error", server_id=int(server_id), status=404, code="not_found")
        for _ in range(2):
            await poll_actions(deps)
            told += await (await owner_conn.execute(newest)).fetchall()

    assert told == [("server_created",), ("server_observed",)]
    await provider.delete_server(server_id)


async def test_a_provider_that_refuses_for_its_rate_limit_is_asked_about_no_other_server(
    stack: Stack, database_url: str
) -> None:
    async with stack.deps(database_url=database_url) as deps:
        for number in range(3):
            await record_instance(
                deps, number, lifecycle.created(server_id=f"99999{number}", action_id=f"99999{number}")
            )
        stack.cloudsim.fault("get_server", "rate_limit", times=None)
        before = stack.cloudsim.requests("get_server")

        with capture_logs() as logs:
            await poll_actions(deps)

    assert stack.cloudsim.requests("get_server") == before + 1
    assert [(line["event"], line["code"]) for line in logs] == [("observation_failed", "rate_limit_exceeded")]


async def test_however_many_servers_wait_for_one_provider_those_of_another_are_observed(
    stack: Stack,
    provider: HetznerProvider,
    database_url: str,
    owner_conn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(action_polling, "SERVERS_PER_POLL_MAX", 1)
    nowhere = HetznerProvider(
        f"http://127.0.0.1:{free_port()}/v1", TOKEN, timeout_s=5.0, ssh_public_key=PUBLIC_KEY, ssh_key_name="hydracore"
    )
    server_id = await create_orphan(provider, **other_installation())
    async with stack.deps(database_url=database_url) as deps, aclosing(nowhere):
        for number in range(2):
            await record_instance(deps, number, lifecycle.created(server_id=f"99999{number}"), provider="another")
        made = await record_instance(deps, 2, lifecycle.created(server_id=server_id, action_id=f"99999{server_id}"))
        await wait_until_running(provider, server_id)

        with capture_logs() as logs:
            await poll_actions(replace(deps, providers={**deps.providers, "another": nowhere}))

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(made,)]
    assert [(line["event"], line["provider"]) for line in logs] == [("observation_failed", "another")]
    await provider.delete_server(server_id)


async def test_a_provider_that_is_not_configured_keeps_no_other_provider_s_server_from_being_observed(
    stack: Stack, provider: HetznerProvider, database_url: str, owner_conn: psycopg.AsyncConnection
) -> None:
    server_id = await create_orphan(provider, **other_installation())
    async with stack.deps(database_url=database_url) as deps:
        await record_instance(deps, 0, lifecycle.created(), provider="another")
        made = await record_instance(deps, 1, lifecycle.created(server_id=server_id, action_id=f"99999{server_id}"))
        await wait_until_running(provider, server_id)

        with capture_logs() as logs:
            await poll_actions(deps)

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(made,)]
    assert [(line["event"], line["provider"]) for line in logs] == [("provider_not_configured", "another")]
    await provider.delete_server(server_id)


async def test_servers_of_deleted_instances_are_not_polled(stack: Stack, database_url: str) -> None:
    async with stack.deps(database_url=database_url) as deps:
        await record_instance(deps, 0, lifecycle.created(server_id="999990", action_id="999990"), lifecycle.delete())
        before = stack.cloudsim.requests("get_server")

        await poll_actions(deps)

    assert stack.cloudsim.requests("get_server") == before


async def test_the_servers_that_have_waited_longest_are_polled_first(
    stack: Stack,
    provider: HetznerProvider,
    database_url: str,
    owner_conn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(action_polling, "SERVERS_PER_POLL_MAX", 1)
    servers = [await create_orphan(provider, **other_installation()) for _ in range(2)]
    for server_id in servers:
        await wait_until_running(provider, server_id)
    async with stack.deps(database_url=database_url) as deps:
        made = [lifecycle.created(server_id=server_id, action_id=f"99999{server_id}") for server_id in servers]
        _, longest = sorted([await record_instance(deps, number, one) for number, one in enumerate(made)])
        earlier = "UPDATE instance SET updated_at = updated_at - interval '1 hour' WHERE id = %s"
        await owner_conn.execute(earlier, (longest,))

        await poll_actions(deps)

    seen = await owner_conn.execute("SELECT stream_id FROM event WHERE type = 'server_observed'")
    assert await seen.fetchall() == [(longest,)]
    for server_id in servers:
        await provider.delete_server(server_id)
