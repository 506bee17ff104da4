"""Answers to a create that come from a gateway in front of the provider: they end no attempt, and no server is created twice."""

import pytest

from tests.stack import Stack


@pytest.mark.parametrize("status", [408, 421, 425, 504])
async def test_an_answer_of_a_gateway_to_a_create_ends_no_attempt_and_doubles_no_server(
    stack: Stack, status: int
) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "gateway", name=f"hc-{instance_id}", status=status)

    await stack.create(key)

    await stack.until_status(instance_id, "running")
    assert not stack.has_happened(instance_id, "attempt_failed")
    assert len(stack.servers(instance_id)) == 1
