"""Servers at the provider that have an instance's name but were not made for it are left alone and reported."""

import asyncio
import json
from collections.abc import Callable
from uuid import UUID, uuid4

from tests import lifecycle
from tests.lost_locks import record_now
from tests.orphan_servers import create_orphan, create_orphan_of
from tests.stack import Stack
from workers.advance import advance
from workers.deps import Deps
from workers.providers.hetzner import HetznerProvider

#: The label of another log's intent.
FOREIGN = {"hc-intent": "0123456789abcdef"}


async def test_a_server_of_a_lost_history_is_neither_adopted_nor_removed(
    stack: Stack, provider: HetznerProvider
) -> None:
    stack.worker.kill()
    key, instance_id = stack.new_key()
    # As after the log was restored from a backup, and the tenant requests a lost instance again.
    lost = await create_orphan(provider, **{"hc-instance": str(instance_id)}, **FOREIGN)
    waiting = "SELECT 1 FROM attention WHERE instance_id = %s AND code = 'server_unaccounted'"
    await stack.create(key)

    async with stack.deps(boot_timeout_s="2") as deps:
        for reached in (
            lambda: stack.rows(waiting, instance_id),
            lambda: stack.has_happened(instance_id, "attempt_failed", code="server_unaccounted", retryable=False),
        ):
            await stack.until(lambda reached=reached: is_reached(deps, instance_id, reached))
    stack.worker.start()
    await stack.until_status(instance_id, "failed")
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")

    assert "server_created" not in stack.types(instance_id)
    assert lost in {str(server["id"]) for server in stack.cloudsim.servers()}
    await provider.delete_server(lost)


async def test_of_two_servers_of_an_instance_the_older_is_adopted_and_the_other_deleted(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    # In a database that no worker uses. As at a provider without unique names, if a create was sent twice.
    instance_id = uuid4()
    older, twin = await create_orphan_of(provider, instance_id), await create_orphan_of(provider, instance_id)
    async with stack.deps(database_url=database_url) as deps:
        await record_now(deps, instance_id, lifecycle.request())
        await record_now(deps, instance_id, lifecycle.plan(deadline_ms=deps.now_ms() + 900_000))

        await stack.until(
            lambda: is_reached(
                deps, instance_id, lambda: twin not in {str(server["id"]) for server in stack.cloudsim.servers()}
            )
        )

        state = await deps.store.load(instance_id)
    assert state is not None
    assert state.attempt is not None
    assert state.attempt.server_id == older
    adopted = await provider.get_server(older)
    assert adopted is not None
    assert adopted.status != "deleting"
    await provider.delete_server(older)


async def test_a_duplicate_server_that_another_worker_has_just_recorded_is_not_deleted(
    stack: Stack, provider: HetznerProvider, database_url: str
) -> None:
    # The other worker did not see the older server.
    instance_id = uuid4()
    older, twin = await create_orphan_of(provider, instance_id), await create_orphan_of(provider, instance_id)
    async with stack.deps(database_url=database_url) as deps:
        await record_now(deps, instance_id, lifecycle.request())
        await record_now(deps, instance_id, lifecycle.plan(deadline_ms=deps.now_ms() + 900_000))
        stack.cloudsim.fault("list_servers", "hold_after")
        late = asyncio.create_task(advance(deps, instance_id))
        await stack.until(stack.cloudsim.held)
        await record_now(deps, instance_id, lifecycle.created(server_id=twin))

        stack.cloudsim.call("POST", "/_sim/release", {"all": True})
        await late

    server = await provider.get_server(twin)
    assert server is not None
    assert server.status != "deleting"
    for each in (older, twin):
        await provider.delete_server(each)


async def test_a_server_name_that_is_taken_fails_the_instance_and_is_logged(
    stack: Stack, provider: HetznerProvider
) -> None:
    key, instance_id = stack.new_key()
    others = await create_orphan(provider, **{"hc-instance": str(instance_id), "hc-installation": "staging"})

    await stack.create(key)
    await stack.until_status(instance_id, "failed")
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")

    failures = [event for event in stack.events(instance_id) if event["type"] == "attempt_failed"]
    assert [(event["code"], event["retryable"]) for event in failures] == [("server_name_taken", False)]
    assert [event["nothing_made"] for event in failures] == [True]
    lines = [json.loads(line) for line in stack.worker.output().splitlines() if str(instance_id) in line]
    # Other tests' providers may have used the same id.
    told = [line["event"] for line in lines if line.get("server_id") == others]
    assert told == ["server_name_taken"]
    assert others in {str(server["id"]) for server in stack.cloudsim.servers()}
    await provider.delete_server(others)


async def is_reached(deps: Deps, instance_id: UUID, reached: Callable[[], object]) -> bool:
    """Take the next step, and say whether it has led there."""
    await advance(deps, instance_id)
    return bool(reached())
