"""How long a boot may take: the time in which our API was away does not count."""

import pytest

from tests.stack import Stack
from workers.advance import advance

#: Since when, and until when, heartbeats could be heard: for an hour, and not for the last one.
AWAY = "UPDATE hearing SET since = now() - interval '2 h', until = now() - interval '1 h' RETURNING 1"

BOOT_TIMEOUT_S = 0.5
LOOKED_AT_AGAIN = """SELECT 1 FROM attention a JOIN instance i ON i.lane = a.lane AND i.id = a.instance_id AND i.version = a.version
                      WHERE i.id = %s AND a.failures = 0 AND a.not_before <= now() + interval '60 s'"""


@pytest.mark.parametrize("recorded", [True, False], ids=["the agent boots", "the create is not recorded"])
async def test_nothing_is_given_up_that_could_not_report_and_all_that_could(stack: Stack, recorded: bool) -> None:  # noqa: FBT001 - a parameter
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
