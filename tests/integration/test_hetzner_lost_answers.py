"""Calls of the Hetzner driver whose answers are lost or late: unknown is never taken for failed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from tests.cloudsim_fixtures import CloudsimProcess, driver_for, user_data
from tests.hetzner_calls import LABELS, assert_no_secret, is_gone, server_order, wait_until_running
from tests.waiting import until
from workers.providers.base import Provider, ProviderOutcomeUnknown, ProviderRetry
from workers.providers.hetzner import HetznerProvider


@pytest.fixture
async def hasty(cloudsim: CloudsimProcess) -> AsyncGenerator[HetznerProvider]:
    """A driver with a short timeout, but one in which a busy machine can answer."""
    provider = driver_for(cloudsim, timeout_s=3.0)
    yield provider
    await provider.aclose()


async def test_a_create_without_an_answer_has_an_unknown_outcome_and_its_server_is_found_by_label(
    cloudsim: CloudsimProcess, driver: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    cloudsim.fault("create_server", "drop_reply")

    with pytest.raises(ProviderOutcomeUnknown) as unknown:
        await driver.create_server(server_order(user_data=user_data()))
    found = await driver.find_servers(LABELS)

    assert [server.name for server in found] == ["hc-1"]
    assert unknown.value.code == "connection_broke"
    assert_no_secret(unknown.value, caplog)


async def test_a_create_that_times_out_has_an_unknown_outcome_and_may_still_happen(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider
) -> None:
    cloudsim.fault("create_server", "hold_before")

    with pytest.raises(ProviderOutcomeUnknown):
        await hasty.create_server(server_order())
    assert await driver.find_servers(LABELS) == []
    await until(lambda: [held["client_gone"] for held in cloudsim.held()] == [True])
    cloudsim.call("POST", "/_sim/release", {"id": cloudsim.held()[0]["id"], "apply": True})

    assert [server.name for server in await driver.find_servers(LABELS)] == ["hc-1"]


async def test_a_create_whose_request_is_dropped_has_an_unknown_outcome_and_makes_no_server(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("create_server", "hold_before")
    creating = asyncio.create_task(driver.create_server(server_order()))
    await until(cloudsim.held)

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})

    with pytest.raises(ProviderOutcomeUnknown):
        await creating
    assert cloudsim.held() == []
    assert cloudsim.call("GET", "/_sim/servers") == {"servers": []}


async def test_a_create_whose_answer_is_held_succeeds_when_the_answer_is_released(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("create_server", "hold_after")
    creating = asyncio.create_task(driver.create_server(server_order()))
    await until(cloudsim.held)
    assert [server["name"] for server in cloudsim.servers()] == ["hc-1"]
    assert cloudsim.held()[0]["applied"]

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert (await creating).server.name == "hc-1"


@pytest.mark.parametrize("fault", ["drop_reply", "hold_after"])
async def test_a_delete_without_an_answer_has_an_unknown_outcome_and_is_done(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider, fault: str
) -> None:
    created = await driver.create_server(server_order())
    await wait_until_running(driver, created.server.id)
    cloudsim.fault("delete_server", fault)

    with pytest.raises(ProviderOutcomeUnknown):
        await hasty.delete_server(created.server.id)

    await until(lambda: is_gone(driver, created.server.id))


@pytest.mark.parametrize("fault", ["drop_reply", "hold_before"])
async def test_a_read_without_an_answer_can_be_repeated(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider, fault: str
) -> None:
    created = await driver.create_server(server_order())
    cloudsim.fault("get_server", fault)

    with pytest.raises(ProviderRetry):
        await hasty.get_server(created.server.id)

    # No answer came in time, so the driver pauses for a moment first.
    await until(lambda: is_there(hasty, created.server.id))


async def is_there(driver: Provider, server_id: str) -> bool:
    with contextlib.suppress(ProviderRetry):
        return await driver.get_server(server_id) is not None
    return False
