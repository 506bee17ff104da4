"""A hand in the provider's project that the control plane knows nothing of, and servers that it makes there."""

from collections.abc import AsyncGenerator
from uuid import uuid4

import pytest

from tests.cloudsim_fixtures import driver_for, user_data
from tests.stack import Stack
from workers.providers.base import CreateServer
from workers.providers.hetzner import HetznerProvider


async def stray(provider: HetznerProvider, **labels: str) -> str:
    """A server that bears our labels, with these changed, and that no instance accounts for; its id."""
    instance_id = uuid4()
    ours = {"hc-installation": "hydracore", "hc-instance": str(instance_id), "hc-attempt": "1"}
    order = CreateServer(
        name=f"hc-{instance_id}",
        server_type="sim1",
        location="local1",
        image="debian-13",
        user_data=user_data(),
        labels=ours | labels,
    )
    return (await provider.create_server(order)).server.id


@pytest.fixture(name="provider")
async def provider_fixture(stack: Stack) -> AsyncGenerator[HetznerProvider]:
    driver = driver_for(stack.cloudsim)
    yield driver
    await driver.aclose()
