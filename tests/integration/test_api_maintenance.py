"""Upkeep of instances: rotating keys, cleaning up dead instances, and the runtime status."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio

from events.state import TEARDOWN_STEPS
from hydracore import tokens
from tests.api_server import MASTER_KEY, Api
from tests.instance_fixtures import (
    HEARTBEAT,
    KEY_ID,
    RunningInstance,
    execute_commands,
    make_failed,
    make_lost,
    provision,
    request_instance,
    running_instance,
    shared_api,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
    shared_unreachable_fixture,
)
from tests.lifecycle import BOOT, acknowledge, delete, finish, issue, mark_ready, teardown, vanished
from tests.services import Services

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture", "shared_unreachable_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER_KEY = UUID(int=0xC9)


def admin(api: Api) -> dict[str, str]:
    return api.token(user="root", role="admin")


async def rotate(instance: RunningInstance, headers: dict[str, str]) -> int:
    url = f"/v1/instances/admin/{instance.instance_id}/rotate-key"
    return (await instance.api.client.post(url, headers=headers)).status_code


async def test_a_rotated_key_is_refused_at_once_and_a_new_one_is_accepted(instance: RunningInstance) -> None:
    config = {"boot_id": str(BOOT), "config_version": 1}
    before = await instance.agent_post("config", config)

    answer = await instance.api.client.post(
        f"/v1/instances/admin/{instance.instance_id}/rotate-key", headers=admin(instance.api)
    )
    after = await instance.agent_post("config", config)
    chat = await instance.ask("POST", "/chat", {"message": "Still there?"})
    key_hash = tokens.hash_token(tokens.agent_key(MASTER_KEY, instance.instance_id, OTHER_KEY)).hex()
    await execute_commands(
        instance.api, instance.instance_id, issue(OTHER_KEY, key_hash=key_hash), acknowledge(OTHER_KEY)
    )
    fresh = await instance.agent_post("config", config, key_id=OTHER_KEY)
    stale = await instance.agent_post("config", config, key_id=KEY_ID)

    assert answer.json() == {"instance_id": str(instance.instance_id), "status": "rotated"}
    assert (before.status_code, after.status_code) == (200, 401)
    # The agent still lets us in by the control token of the key that it last acknowledged.
    assert chat.status_code == 200
    assert (fresh.status_code, stale.status_code) == (200, 401)


async def test_rotating_without_a_key_in_force_is_a_409(api: Api, instance: RunningInstance) -> None:
    instance_id = await request_instance(api)
    pending = await api.client.post(f"/v1/instances/admin/{instance_id}/rotate-key", headers=admin(api))

    assert pending.status_code == 409
    assert [await rotate(instance, admin(api)) for _ in range(2)] == [200, 409]


async def test_only_staff_can_rotate_keys(instance: RunningInstance) -> None:
    api, version = instance.api, await instance.version()

    assert await rotate(instance, api.token()) == 403
    assert await rotate(instance, {"Authorization": "Bearer nonsense"}) == 401
    assert await rotate(instance, api.token(tenant="rival", user="root", role="admin")) == 404
    assert await instance.version() == version
    unknown = await api.client.post(f"/v1/instances/admin/{uuid4()}/rotate-key", headers=api.token())
    assert unknown.status_code == 403, "customers learn nothing here"
    assert await rotate(instance, api.token(tenant="ours", user="ops", role="platform")) == 200


@pytest_asyncio.fixture(loop_scope="module")
async def alone(services: Services) -> AsyncGenerator[Api]:
    """An API whose dead instances are the test's own."""
    async with shared_api(services) as api:
        yield api


async def clean_up(api: Api, headers: dict[str, str]) -> tuple[int, int]:
    answer = await api.client.post("/v1/instances/cleanup", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["cleaned"], answer.json()["errors"]


async def status_of(api: Api, instance_id: UUID) -> str:
    state = await api.parts.store.load(instance_id)
    assert state is not None
    return state.status


async def test_a_cleanup_deletes_the_dead_instances_of_the_tenant_and_no_others(alone: Api) -> None:
    failed, lost, pending, others = [await request_instance(alone, user=user) for user in ("ann", "bob", "cid", "dan")]
    await make_failed(alone, failed)
    await make_lost(alone, lost)
    rival = await alone.client.post(
        "/v1/instances", json={"region_id": "local", "tier_id": "starter"}, headers=alone.token(tenant="rival")
    )
    of_rival = UUID(rival.json()["instance_id"])
    await make_failed(alone, of_rival)

    async with running_instance(alone) as instance:
        cleaned = await clean_up(alone, admin(alone))
        again = await clean_up(alone, admin(alone))
        # A caller that sees all tenants has a tenant all the same.
        by_platform = await clean_up(alone, alone.token(tenant="hydracore", user="op", role="platform"))

    assert (cleaned, again, by_platform) == ((2, 0), (0, 0), (0, 0))
    statuses = [
        await status_of(alone, each) for each in (failed, lost, pending, others, instance.instance_id, of_rival)
    ]
    assert statuses == ["deleting", "deleting", "pending", "pending", "running", "failed"]


async def test_concurrent_cleanups_count_each_dead_instance_once(alone: Api) -> None:
    dead = [await request_instance(alone) for _ in range(6)]
    for each in dead:
        await make_failed(alone, each)

    counts = await asyncio.gather(*(clean_up(alone, admin(alone)) for _ in range(3)))

    assert sum(cleaned for cleaned, _ in counts) == len(dead)
    assert {errors for _, errors in counts} == {0}


async def test_an_instance_that_cannot_be_cleaned_up_is_counted_as_an_error_and_blocks_no_other(alone: Api) -> None:
    broken, sound = await request_instance(alone), await request_instance(alone)
    await make_failed(alone, broken)
    await make_failed(alone, sound)
    # A log that contradicts itself: this instance can be neither read nor changed until an operator has looked into it.
    async with await psycopg.AsyncConnection.connect(alone.parts.settings.database_url, autocommit=True) as owner_conn:
        await owner_conn.execute("DELETE FROM event WHERE stream_id = %s AND version = 2", (broken,))
        await owner_conn.execute("UPDATE stream SET version = 99 WHERE stream_id = %s", (broken,))
    alone.parts.store._loader.evict(broken)

    assert await clean_up(alone, admin(alone)) == (1, 1)
    assert await status_of(alone, sound) == "deleting"


async def test_customers_cannot_clean_up(api: Api) -> None:
    answer = await api.client.post("/v1/instances/cleanup", headers=api.token())

    assert answer.status_code == 403


async def test_the_runtime_status_shows_configuration_drift_and_connections(instance: RunningInstance) -> None:
    instance.agent.connections = {"telegram": "error: the token is refused"}
    instance.agent.script("/api/config", 200, {"config_version": 1})
    await instance.ask("POST", "/config", {"agent_name": "Ada"})

    runtime = (await instance.ask("GET", "/runtime")).json()

    assert (runtime["config_version"], runtime["config_version_running"]) == (2, 1)
    assert runtime["connections"] == {"telegram": "error: the token is refused"}
    assert (runtime["skills_loaded"], runtime["active_connections"]) == (["notes"], 1)


async def test_a_heartbeat_is_answered_with_the_wanted_configuration_version(unreachable: RunningInstance) -> None:
    await unreachable.ask("POST", "/config", {"agent_name": "Ada"})

    answer = await unreachable.agent_post("heartbeat", HEARTBEAT | {"skills_loaded": ["notes"]})
    runtime = (await unreachable.ask("GET", "/runtime")).json()

    assert answer.json()["config_version"] == 2
    assert (runtime["config_version"], runtime["config_version_running"]) == (2, 1)
    assert (runtime["skills_loaded"], runtime["connections"]) == (["notes"], {})


@pytest.mark.parametrize(
    ("code", "told"), [("telegram_failed", ["telegram_failed", None]), ("store_broke", ["store_broke", "store_broke"])]
)
async def test_an_unreachable_agent_s_error_about_a_former_configuration_is_not_shown_for_a_new_one(
    unreachable: RunningInstance, code: str, told: list[str | None]
) -> None:
    await unreachable.agent_post("heartbeat", HEARTBEAT | {"error": {"code": code, "message": "Trouble"}})

    before = (await unreachable.ask("GET", "/runtime")).json()
    await unreachable.ask("POST", "/config", {"agent_name": "Ada"})
    after = (await unreachable.ask("GET", "/runtime")).json()

    assert [before["error_code"], after["error_code"]] == told


async def test_during_a_rotation_the_agent_is_asked_with_the_key_that_it_knows(instance: RunningInstance) -> None:
    await rotate(instance, admin(instance.api))

    assert (await instance.ask("GET", "/runtime")).json()["uptime_seconds"] == 5


async def test_the_runtime_status_answers_from_the_order_to_the_deletion(api: Api) -> None:
    instance_id = await request_instance(api)
    steps = [delete(), *(teardown(step) for step in TEARDOWN_STEPS), finish()]
    seen: list[str] = []

    async def look() -> None:
        answer = await api.client.get(f"/v1/instances/{instance_id}/runtime", headers=api.token())
        assert answer.status_code == 200, answer.text
        assert answer.json()["provision_logs"]
        if answer.json()["status"] not in seen:
            seen.append(answer.json()["status"])

    await look()
    await provision(api, instance_id)
    await look()
    for command in (mark_ready(), *steps):
        await execute_commands(api, instance_id, command)
        await look()

    assert seen == ["pending", "provisioning", "running", "deleting", "deleted"]


@pytest.mark.parametrize("make", [make_failed, make_lost])
async def test_the_runtime_status_of_a_failed_or_lost_instance_shows_its_error(api: Api, make: object) -> None:
    instance_id = await request_instance(api)
    await make(api, instance_id)  # type: ignore[operator]

    answer = await api.client.get(f"/v1/instances/{instance_id}/runtime", headers=api.token())

    assert answer.status_code == 200
    assert answer.json()["error_code"]
    assert answer.json()["config_version"] == 1


async def receive_heartbeat(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, *, intervals_ago: float
) -> None:
    await instance.agent_post("heartbeat", HEARTBEAT)
    await owner_conn.execute(
        "UPDATE heartbeat SET received_at = now() - interval '1 s' * %s WHERE instance_id = %s",
        (intervals_ago * instance.api.parts.settings.heartbeat_interval_s, instance.instance_id),
    )


async def test_a_heartbeat_that_may_still_arrive_is_not_counted_as_missing(
    unreachable: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    for intervals_ago in (0, 1.01):
        await receive_heartbeat(unreachable, owner_conn, intervals_ago=intervals_ago)

        assert (await unreachable.ask("GET", "/runtime")).json()["health_failures"] == 0


async def test_missing_heartbeats_of_a_lost_agent_are_counted_until_its_instance_is_deleted(
    unreachable: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    api, instance_id = unreachable.api, unreachable.instance_id
    await receive_heartbeat(unreachable, owner_conn, intervals_ago=10)

    async def told() -> tuple[str, bool]:
        runtime = (await unreachable.ask("GET", "/runtime")).json()
        return runtime["status"], runtime["health_failures"] >= 9

    running = await told()
    await execute_commands(api, instance_id, vanished(server_id=f"{instance_id.int % 10**9}"))
    lost = await told()
    await execute_commands(api, instance_id, delete())

    assert [running, lost, await told()] == [("running", True), ("error", True), ("deleting", False)]
