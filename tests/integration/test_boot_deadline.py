"""How long a boot may take. The time in which our API was down does not count."""

from dataclasses import dataclass
from uuid import UUID

import pytest

from tests.stack import Stack
from workers.advance import advance
from workers.deps import Deps

#: Heartbeats could be received for an hour, until an hour ago; and for two hours, until now.
AWAY = "UPDATE hearing SET since = now() - interval '2 h', until = now() - interval '1 h' RETURNING 1"
BACK = "UPDATE hearing SET since = now() - interval '2 h' RETURNING 1"

BOOT_TIMEOUT_S = 0.5
LOOKED_AT_AGAIN = """SELECT 1 FROM attention a JOIN instance i ON i.lane = a.lane AND i.id = a.instance_id AND i.version = a.version
                      WHERE i.id = %s AND a.failures = 0 AND a.not_before <= now() + interval '60 s'"""


@pytest.mark.parametrize("recorded", [True, False], ids=["the agent boots", "the create is not recorded"])
async def test_a_server_is_given_up_only_if_its_agent_could_have_reported_within_the_boot_timeout(
    stack: Stack,
    recorded: bool,  # noqa: FBT001 - a parameter
) -> None:
    stack.worker.kill()
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "dead_boot", name=f"hc-{instance_id}")
    if not recorded:
        stack.cloudsim.fault("create_server", "drop_reply", name=f"hc-{instance_id}")
        stack.cloudsim.fault("list_servers", "locked", times=None)
    await stack.create(key)
    stack.api.kill()
    assert stack.rows(AWAY)

    async with stack.deps(boot_timeout_s=str(BOOT_TIMEOUT_S)) as deps:
        await advance(deps, instance_id)
        assert stack.has_happened(instance_id, "server_created") == recorded
        (deadline_ms,) = [event["deadline_ms"] for event in stack.events(instance_id) if "deadline_ms" in event]
        await stack.until(lambda: deps.now_ms() >= deadline_ms)
        stack.cloudsim.call("DELETE", "/_sim/faults")
        await advance(deps, instance_id)
        assert stack.has_happened(instance_id, "server_created")
        assert not stack.has_happened(instance_id, "attempt_failed")
        assert stack.rows(LOOKED_AT_AGAIN, instance_id)

        stack.api.start()

        async def is_given_up() -> bool:
            await advance(deps, instance_id)
            return stack.has_happened(instance_id, "attempt_failed", code="boot_timeout")

        await stack.until(is_given_up)

    assert stack.rows("SELECT 1 FROM hearing WHERE since <= now() - %s * interval '1 s'", BOOT_TIMEOUT_S)


@dataclass(frozen=True, kw_only=True)
class AnHourAgo(Deps):
    """The dependencies of a worker that began an attempt right before an outage of an hour."""

    def now_ms(self) -> int:
        return super().now_ms() - 3_600_000


async def begun_an_hour_ago(stack: Stack, *, enrol_ttl_s: int) -> UUID:
    """An instance whose first attempt began right before an outage of an hour of the control plane. Its server boots now."""
    for part in (stack.relay, stack.worker):
        part.kill()
    instance_id = await stack.create()
    stack.api.kill()
    assert stack.rows(AWAY)

    async with stack.deps(enrol_ttl_s=str(enrol_ttl_s)) as deps:
        await advance(AnHourAgo(**vars(deps)), instance_id)
    assert stack.has_happened(instance_id, "server_created")
    return instance_id


async def test_a_server_being_made_when_an_outage_begins_runs_once_the_outage_is_over(stack: Stack) -> None:
    instance_id = await begun_an_hour_ago(stack, enrol_ttl_s=2 * 3600)

    await stack.start(boot="inline")
    await stack.until_status(instance_id, "running")

    assert not stack.has_happened(instance_id, "attempt_failed")
    assert len(stack.servers(instance_id)) == 1


async def test_an_outage_longer_than_the_enrol_token_costs_the_server_but_not_the_instance(stack: Stack) -> None:
    instance_id = await begun_an_hour_ago(stack, enrol_ttl_s=1800)
    first = stack.server(instance_id)

    await stack.start(boot="inline")
    await stack.until(lambda: is_refused(stack, instance_id))
    # Let the API have been back for as long as a boot may take, and do not wait for the next regular check.
    assert stack.rows(BACK)
    async with stack.deps() as deps:
        await advance(deps, instance_id)
    await stack.until_status(instance_id, "running")

    assert stack.has_happened(instance_id, "attempt_failed", attempt=1, code="boot_timeout")
    assert not stack.has_happened(instance_id, "agent_enrolled", attempt=1)
    assert stack.server(instance_id)["id"] != first["id"]


def is_refused(stack: Stack, instance_id: UUID) -> bool:
    """Whether the instance's agent has logged that its token is refused. The agent runs in cloudsim."""
    lines = stack.cloudsim.log.read_text().splitlines()
    return any("control_plane_refuses" in line and str(instance_id) in line for line in lines)
