"""A server type that the provider does not sell at a location: the next placement is tried, and an invalid order still ends."""

from uuid import UUID

from events.failures import describe
from events.state import ATTEMPTS_MAX
from tests.stack import Stack


def values_of(stack: Stack, instance_id: UUID, kind: str, field: str) -> list[str]:
    """A field of all events of a kind, in their order."""
    return [event[field] for event in stack.events(instance_id) if event["type"] == kind]


async def test_the_next_placement_is_tried_if_a_server_type_is_not_sold_at_a_location(stack: Stack) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "error", name=f"hc-{instance_id}", location="local1", times=None)

    await stack.create(key)

    await stack.until_status(instance_id, "running")
    failed = values_of(stack, instance_id, "attempt_failed", "code")
    assert failed == ["invalid_input"] * len(failed)
    assert values_of(stack, instance_id, "placement_chosen", "location") == [*(["local1"] * len(failed)), "local2"]
    assert len(stack.servers(instance_id)) == 1


async def test_an_order_that_is_invalid_at_every_location_fails_after_the_maximum_of_attempts(
    stack: Stack,
) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "error", name=f"hc-{instance_id}", times=None)
    before = stack.cloudsim.requests("create_server")

    await stack.create(key)

    await stack.until_status(instance_id, "failed")
    assert values_of(stack, instance_id, "attempt_failed", "code") == ["invalid_input"] * ATTEMPTS_MAX
    assert stack.cloudsim.requests("create_server") == before + ATTEMPTS_MAX
    assert describe("invalid_input") in (await stack.detail(instance_id))["error_message"]
    await stack.delete(instance_id)
    await stack.until_status(instance_id, "deleted")
    stack.assert_no_server(instance_id)
