"""Providers that refuse, fail, forget and are slow, and what happens to the instances, with real processes."""

import asyncio
import re
import time
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from events.failures import describe
from events.ids import lane_of
from events.state import ATTEMPTS_MAX
from hydracore.settings import PACKAGED_CATALOGUE
from tests.lifecycle import BOOT
from tests.orphan_servers import create_orphan
from tests.stack import FAST_HEARTBEATS, Stack
from workers.advance import advance
from workers.broker import POLL_ACTIONS
from workers.providers.hetzner import HetznerProvider

#: A heartbeat of an agent that was last heard a while ago.
OLD_BEAT = """INSERT INTO heartbeat (lane, instance_id, received_at, boot_id, report)
              VALUES (%s, %s, now() - interval '100 s', %s, '{}') RETURNING 1"""


def attempts(stack: Stack, instance_id: UUID) -> list[tuple[str, str]]:
    """Server type and location of each attempt."""
    return [
        (event["server_type"], event["location"])
        for event in stack.events(instance_id)
        if event["type"] == "placement_chosen"
    ]


def failures(stack: Stack, instance_id: UUID) -> list[str]:
    return [event["code"] for event in stack.events(instance_id) if event["type"] == "attempt_failed"]


async def assert_deletable(stack: Stack, *instance_ids: UUID) -> None:
    for instance_id in instance_ids:
        await stack.delete(instance_id)
    for instance_id in instance_ids:
        await stack.until_status(instance_id, "deleted")
        stack.assert_no_server(instance_id)
        held = "SELECT kind FROM reservation WHERE instance_id = %s AND released_at IS NULL"
        assert stack.rows(held, instance_id) == [("idempotency_key",)]


async def test_without_capacity_the_next_placement_is_tried(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "no_capacity", name=f"hc-{instance_id}", times=2)

    await stack.create(key)

    await stack.until_status(instance_id, "running")
    assert attempts(stack, instance_id) == [("sim1", "local1"), ("sim2", "local1"), ("sim1", "local2")]
    assert failures(stack, instance_id) == ["resource_unavailable"] * 2
    assert len(stack.servers(instance_id)) == 1


async def test_an_instance_fails_when_no_placement_is_left_and_can_then_be_deleted(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "no_capacity", name=f"hc-{instance_id}", times=None)

    await stack.create(key)

    await stack.until_status(instance_id, "failed")
    assert len(set(attempts(stack, instance_id))) == ATTEMPTS_MAX == 4
    assert failures(stack, instance_id) == ["resource_unavailable"] * 4
    detail = await stack.detail(instance_id)
    assert detail["error_message"] == "The provider has no capacity for this server type at this location"
    await assert_deletable(stack, instance_id)
    assert not stack.servers(instance_id)


@pytest.mark.parametrize("everything", [False, True], ids=["the create alone", "every call"])
async def test_a_refused_create_ends_provisioning_and_a_server_made_all_the_same_is_deleted(
    stack: Stack,
    provider: HetznerProvider,
    everything: bool,  # noqa: FBT001 - a parameter
) -> None:
    key, instance_id = stack.new_key()
    made = await create_orphan(provider, **{"hc-instance": str(instance_id)})
    refusal = {"status": 403, "code": "resource_limit_exceeded", "times": None}
    stack.cloudsim.fault("create_server", "error", name=f"hc-{instance_id}", **refusal)
    if everything:
        stack.cloudsim.fault("list_servers", "error", **refusal)

    await stack.create(key)

    await stack.until_status(instance_id, "failed")
    assert failures(stack, instance_id) == ["resource_limit_exceeded"]
    assert (made in {str(server["id"]) for server in stack.cloudsim.servers()}) == everything
    stack.cloudsim.call("DELETE", "/_sim/faults")
    await assert_deletable(stack, instance_id)
    stack.assert_no_server(instance_id)


@pytest.mark.parametrize("late", [False, True], ids=["with its answer", "after its caller gave up"])
async def test_a_deletion_during_a_create_also_deletes_the_created_server(stack: Stack, late: bool) -> None:  # noqa: FBT001 - a parameter
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "hold_before", name=f"hc-{instance_id}")
    await stack.create(key)
    await stack.until(stack.cloudsim.held)

    await stack.delete(instance_id)
    if late:
        # The first look has found nothing; the second must find the server that was created in between.
        await stack.until(lambda: stack.has_happened(instance_id, "teardown_step_done", step="server_deleted"))
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})

    assert len(stack.servers(instance_id)) == 1
    await stack.until_status(instance_id, "deleted")
    stack.assert_no_server(instance_id)


async def test_a_deletion_while_a_worker_looks_up_its_server_prevents_a_create(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "gateway", name=f"hc-{instance_id}")
    stack.cloudsim.fault("list_servers", "hold_before")
    await stack.create(key)
    await stack.until(stack.cloudsim.held)

    await stack.delete(instance_id)
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})

    await stack.until_status(instance_id, "deleted")
    assert not stack.servers(instance_id)


async def test_a_pending_instance_is_deleted_without_creating_a_server(stack: Stack) -> None:
    stack.worker.kill()
    instance_id = await stack.create()
    assert (await stack.detail(instance_id))["status"] == "pending"

    await stack.delete(instance_id)
    stack.worker.start()

    await stack.until_status(instance_id, "deleted")
    assert not stack.servers(instance_id)


async def test_a_teardown_that_is_refused_reports_why_and_completes_once_it_can(stack: Stack) -> None:
    locked, undying = await stack.running(), await stack.running()
    stack.cloudsim.fault("delete_server", "locked", name=f"hc-{locked}", times=None)
    stack.cloudsim.fault("delete_server", "action_error", name=f"hc-{undying}", times=None)

    await asyncio.gather(stack.delete(locked), stack.delete(undying))

    for instance_id, code in ((locked, "locked"), (undying, "server_still_there")):
        await stack.until(lambda each=instance_id: stack.has_happened(each, "teardown_blocked"))
        assert stack.has_happened(instance_id, "teardown_blocked", step="server_deleted", code=code)
        detail = await stack.detail(instance_id)
        assert (detail["status"], bool(detail["error_message"])) == ("deleting", True)
    stack.cloudsim.call("DELETE", "/_sim/faults")
    for instance_id in (locked, undying):
        await stack.until_status(instance_id, "deleted")
        stack.assert_no_server(instance_id)


async def test_a_deletion_waits_for_a_provider_that_is_no_longer_set_up_and_says_so(
    stack: Stack, tmp_path: Path
) -> None:
    catalogue = tmp_path / "catalogue.toml"
    packaged = PACKAGED_CATALOGUE.read_text()
    catalogue.write_text(re.sub(r'(?<=providers\.)cloudsim|cloudsim(?= =)|(?<=")cloudsim(?=")', "renamed", packaged))
    instance_id = await stack.running()
    stack.worker.kill()
    await stack.delete(instance_id)

    for change in ({"cloudsim_token": ""}, {"catalogue": str(catalogue)}):
        async with stack.deps(teardown_alarm_s="0.001", **change) as deps:
            with capture_logs() as said:
                await advance(deps, instance_id)
            reasons = {(line["code"], line["provider"]) for line in said if line["event"] == "step_failed"}
            assert reasons == {("provider_not_configured", "cloudsim")}
    detail = await stack.detail(instance_id)
    logs = (await stack.ask("GET", f"/v1/instances/{instance_id}/logs")).json()["logs"]
    events = stack.types(instance_id)
    stack.server(instance_id)
    stack.worker.start()
    await stack.until_status(instance_id, "deleted")

    assert (detail["status"], detail["error_message"]) == ("deleting", describe("provider_not_configured"))
    assert (
        logs[-1]["message"] == f"Deletion is delayed, and HydraCore keeps trying: {describe('provider_not_configured')}"
    )
    assert events.count("teardown_blocked") == 1
    stack.assert_no_server(instance_id)


async def test_a_server_that_is_locked_for_a_moment_is_deleted_after_a_wait(stack: Stack) -> None:
    instance_id = await stack.running()
    stack.cloudsim.fault("delete_server", "locked", name=f"hc-{instance_id}")

    await stack.delete(instance_id)

    await stack.until_status(instance_id, "deleted")
    stack.assert_no_server(instance_id)


async def test_a_create_waits_for_the_provider_s_rate_limit_and_does_not_count_as_failed(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "rate_limit", name=f"hc-{instance_id}", retry_after_s=2)
    before = stack.cloudsim.requests("create_server")

    began_s = time.monotonic()
    await stack.create(key)
    await stack.until(lambda: stack.has_happened(instance_id, "server_created"))

    assert time.monotonic() - began_s >= 2
    assert stack.cloudsim.requests("create_server") - before == 2
    assert not failures(stack, instance_id)
    await stack.until_status(instance_id, "running")


async def test_a_server_whose_create_was_not_answered_is_adopted(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "drop_reply", name=f"hc-{instance_id}")

    await stack.create(key)

    await stack.until_status(instance_id, "running")
    assert stack.has_happened(instance_id, "server_created", attempt=1, adopted=True)
    assert len(stack.servers(instance_id)) == 1


async def test_a_create_refused_for_capacity_does_not_declare_an_earlier_one_absent(stack: Stack) -> None:
    instance_id = await refused_while_an_earlier_create_is_in_transit(stack, status=412, code="resource_unavailable")

    await stack.until_status(instance_id, "running")
    assert stack.server(instance_id)["labels"]["hc-attempt"] == "2"
    assert stack.server(instance_id)["id"] == int(stack.logged_server_id(instance_id))


async def test_a_create_refused_permanently_does_not_declare_an_earlier_one_absent(stack: Stack) -> None:
    instance_id = await refused_while_an_earlier_create_is_in_transit(stack, status=403, code="resource_limit_exceeded")

    await stack.until_status(instance_id, "failed")
    assert len(stack.servers(instance_id)) == 1
    stack.assert_no_server(instance_id)


async def refused_while_an_earlier_create_is_in_transit(stack: Stack, *, status: int, code: str) -> UUID:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "hold_before", name=f"hc-{instance_id}")
    stack.cloudsim.fault("create_server", "error", name=f"hc-{instance_id}", status=status, code=code)
    await stack.create(key)
    await stack.until(lambda: stack.has_happened(instance_id, "attempt_failed"))
    stack.cloudsim.call("POST", "/_sim/release", {"all": True})
    assert failures(stack, instance_id) == [code]
    assert not stack.has_happened(instance_id, "attempt_failed", nothing_made=True)
    return instance_id


async def test_a_server_of_an_attempt_unknown_to_the_log_is_deleted_only_with_its_instance(
    stack: Stack, provider: HetznerProvider
) -> None:
    key, instance_id = stack.new_key()
    # As after the log was restored from a backup.
    later = await create_orphan(provider, **{"hc-instance": str(instance_id), "hc-attempt": "2"})
    waiting = "SELECT 1 FROM attention WHERE instance_id = %s AND code = 'server_unaccounted'"

    await stack.create(key)
    await stack.until(lambda: stack.rows(waiting, instance_id))

    assert later in {str(server["id"]) for server in stack.cloudsim.servers()}
    await assert_deletable(stack, instance_id)
    assert later not in {str(server["id"]) for server in stack.cloudsim.servers()}


async def test_a_server_that_never_boots_is_replaced(stack: Stack) -> None:
    stack.restart_worker(boot_timeout_s="1")
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "dead_boot", name=f"hc-{instance_id}")

    await stack.create(key)
    await stack.until(lambda: stack.has_happened(instance_id, "server_created"))
    # Its deadline is in the log; the next attempt gets the usual one.
    stack.restart_worker()

    await stack.until_status(instance_id, "running")
    assert failures(stack, instance_id) == ["boot_timeout"]
    # The attempts do not overlap, at the provider and in the log.
    assert len(stack.servers(instance_id)) == 2
    assert stack.server(instance_id)["labels"]["hc-attempt"] == "2"
    types = stack.types(instance_id)
    assert types.index("server_discarded") < len(types) - 1 - types[::-1].index("placement_chosen")


@pytest.mark.parametrize("fault", ["action_error", "start_error"])
async def test_a_server_that_the_provider_fails_to_start_is_replaced(stack: Stack, fault: str) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", fault, name=f"hc-{instance_id}", code="no_power")

    await stack.create(key)
    await stack.until(lambda: stack.has_happened(instance_id, "server_created"))
    stack.hint(POLL_ACTIONS)

    await stack.until_status(instance_id, "running")
    assert failures(stack, instance_id) == ["no_power"]
    assert stack.server(instance_id)["labels"]["hc-attempt"] == "2"


async def test_the_last_heartbeat_of_an_earlier_attempt_does_not_count_for_a_new_agent(stack: Stack) -> None:
    stack.cloudsim.fault("create_server", "hold_before")
    instance_id = await stack.create()
    await stack.until(stack.cloudsim.held)
    assert stack.rows(OLD_BEAT, lane_of(instance_id), instance_id, BOOT)

    stack.cloudsim.call("POST", "/_sim/release", {"all": True})
    await stack.until_status(instance_id, "running")

    silent = "SELECT silent_s(received_at) FROM heartbeat WHERE instance_id = %s AND boot_id <> %s"
    assert stack.rows(silent, instance_id, BOOT)[0][0] < 100


async def test_a_silent_agent_becomes_late_then_unreachable_and_healthy_once_it_reports(stack: Stack) -> None:
    async with stack.restarted(**FAST_HEARTBEATS):
        instance_id = await stack.running()
        server_id = stack.logged_server_id(instance_id)

        async def is_(health: str) -> bool:
            return (await stack.detail(instance_id))["health_status"] == health

        stack.cloudsim.call("POST", f"/_sim/servers/{server_id}/kill")
        await stack.until(lambda: is_("late"))
        await stack.until(lambda: is_("unreachable"))
        stack.cloudsim.call("POST", f"/v1/servers/{server_id}/actions/reboot")
        await stack.until(lambda: is_("healthy"))
        status = (await stack.detail(instance_id))["status"]

    changes = [event["health"] for event in stack.events(instance_id) if event["type"] == "health_changed"]
    came_back = changes.index("unreachable")
    assert changes[came_back - 1 : came_back + 2] == ["late", "unreachable", "healthy"]
    assert status == "running"
