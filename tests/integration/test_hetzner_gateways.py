"""Answers to a create that are not the provider's but of a gateway in front of it: they end no attempt, and nothing is made twice."""

import pytest

from tests.stack import Stack


@pytest.mark.parametrize("status", [408, 421, 425, 504])
async def test_an_answer_that_says_nothing_of_the_create_ends_no_attempt(stack: Stack, status: int) -> None:
    key, instance_id = stack.new_key()
    stack.cloudsim.fault("create_server", "gateway", name=f"hc-{instance_id}", status=status)

    await stack.create(key)

    await stack.until_status(instance_id, "running")
    assert not stack.has_happened(instance_id, "attempt_failed")
    assert len(stack.servers(instance_id)) == 1
