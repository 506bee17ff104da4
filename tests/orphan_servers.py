"""Makes servers in the provider's project that the control plane does not know of."""

from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import pytest

from events import commands as c
from tests import lifecycle
from tests.cloudsim_fixtures import driver_for, user_data
from tests.stack import Stack
from workers.deps import Deps
from workers.providers.base import CreateServer
from workers.providers.hetzner import HetznerProvider


async def create_orphan(provider: HetznerProvider, **labels: str) -> str:
    """A server that bears our labels, with these changed, and that no instance accounts for; its id."""
    given = {"hc-installation": "hydracore", "hc-instance": str(uuid4()), "hc-attempt": "1", **labels}
    order = CreateServer(
        name=f"hc-{given['hc-instance']}",
        server_type="sim1",
        location="local1",
        image="debian-13",
        user_data=user_data(),
        labels=given,
    )
    return (await provider.create_server(order)).server.id


async def create_orphan_of(provider: HetznerProvider, instance_id: UUID, **labels: str) -> str:
    """The same, but labelled as the server of an instance that the log has."""
    server_id = await create_orphan(provider, **labels)
    server = await provider.get_server(server_id)
    assert server is not None
    await provider.set_labels(server_id, {**server.labels, "hc-instance": str(instance_id)})
    return server_id


def other_installation() -> dict[str, str]:
    """The label of another installation than the stack's, in the same project of the provider."""
    return {"hc-installation": f"of-its-own-{uuid4().hex}"}


async def record_instance(deps: Deps, number: int, *commands: c.AnyCommand, provider: str = "cloudsim") -> UUID:
    """An instance in the log after these commands, with an address of its own."""
    instance_id = uuid4()
    plan = lifecycle.plan(provider=provider, hostname=f"hc-{number}", vpn_ip=f"10.64.0.{16 + number}")
    for command in (lifecycle.request(customer_id=f"customer-{number}"), plan, *commands):
        await deps.store.execute(instance_id, command, deps.origin(instance_id))
    return instance_id


@pytest.fixture(name="provider")
async def provider_fixture(stack: Stack) -> AsyncGenerator[HetznerProvider]:
    driver = driver_for(stack.cloudsim)
    yield driver
    await driver.aclose()
