"""Errors of the provider in the Hetzner driver: each has its class, creates no server and contains no secret."""

import logging
import os
import signal
from typing import Any

import pytest

from hydracore.embedded.ports import free_port
from tests.cloudsim_fixtures import PUBLIC_KEY, TOKEN, CloudsimProcess, driver_for, stop_short, user_data
from tests.hetzner_calls import LABELS, assert_no_secret, full_error_text, is_gone, server_order, wait_until_running
from tests.waiting import PATIENCE_S, until
from workers.providers.base import (
    Provider,
    ProviderError,
    ProviderLater,
    ProviderNameTaken,
    ProviderNoCapacity,
    ProviderOutcomeUnknown,
    ProviderRefused,
    ProviderRetry,
)
from workers.providers.hetzner import HetznerProvider


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"fault": "no_capacity"}, (ProviderNoCapacity, "resource_unavailable")),
        ({"fault": "error", "status": 412, "code": "placement_error"}, (ProviderNoCapacity, "placement_error")),
        ({"fault": "error", "code": "invalid_server_type"}, (ProviderNoCapacity, "invalid_server_type")),
        ({"fault": "locked"}, (ProviderLater, "locked")),
        ({"fault": "server_error"}, (ProviderLater, "server_error")),
        ({"fault": "server_error", "status": 503, "code": "unavailable"}, (ProviderLater, "unavailable")),
        ({"fault": "server_error", "status": 503, "code": "maintenance"}, (ProviderLater, "maintenance")),
        ({"fault": "server_error", "status": 503, "code": "service_error"}, (ProviderLater, "service_error")),
        ({"fault": "server_error", "status": 599, "code": "brand_new"}, (ProviderLater, "brand_new")),
        ({"fault": "rate_limit", "retry_after_s": 0}, (ProviderRetry, "rate_limit_exceeded")),
        ({"fault": "error", "status": 409, "code": "conflict"}, (ProviderRetry, "conflict")),
        ({"fault": "gateway"}, (ProviderRetry, "http_502")),
        ({"fault": "gateway", "status": 504}, (ProviderOutcomeUnknown, "http_504")),
        ({"fault": "gateway", "status": 408}, (ProviderOutcomeUnknown, "http_408")),
        ({"fault": "gateway", "status": 421}, (ProviderRetry, "http_421")),
        ({"fault": "gateway", "status": 425}, (ProviderRetry, "http_425")),
        ({"fault": "server_error", "status": 504, "code": "timeout"}, (ProviderOutcomeUnknown, "timeout")),
        ({"fault": "error", "status": 409, "code": "uniqueness_error"}, (ProviderNameTaken, "uniqueness_error")),
        (
            {"fault": "error", "status": 403, "code": "resource_limit_exceeded"},
            (ProviderRefused, "resource_limit_exceeded"),
        ),
        ({"fault": "error", "status": 403, "code": "forbidden"}, (ProviderRefused, "forbidden")),
        ({"fault": "error", "status": 403, "code": "token_readonly"}, (ProviderRefused, "token_readonly")),
        ({"fault": "error", "status": 401, "code": "unauthorized"}, (ProviderRefused, "unauthorized")),
        ({"fault": "error", "status": 423, "code": "protected"}, (ProviderRefused, "protected")),
        ({"fault": "error", "status": 423, "code": "resource_locked"}, (ProviderRefused, "resource_locked")),
        ({"fault": "error", "status": 400, "code": "json_error"}, (ProviderRefused, "json_error")),
        # Only the text of the error, which is not read, tells a type that is not sold at a location from other invalid orders.
        ({"fault": "error", "code": "invalid_input"}, (ProviderNoCapacity, "invalid_input")),
        ({"fault": "error", "code": "brand_new"}, (ProviderRefused, "brand_new")),
        ({"fault": "error", "code": f"leak of {TOKEN}"}, (ProviderRefused, "unreadable_code")),
    ],
)
async def test_each_provider_error_has_its_class_and_creates_no_server(
    cloudsim: CloudsimProcess,
    driver: Provider,
    fault: dict[str, Any],
    expected: tuple[type[ProviderError], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    cloudsim.fault("create_server", **fault)

    with pytest.raises(ProviderError) as failed:
        await driver.create_server(server_order(user_data=user_data()))

    assert (type(failed.value), failed.value.code) == expected
    assert failed.value.correlation_id is not None
    assert_no_secret(failed.value, caplog)
    assert cloudsim.servers() == []


async def test_refusals_that_cloudsim_makes_by_itself_have_their_classes(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    await driver.create_server(server_order())

    for wrong, kind in (({}, ProviderNameTaken), ({"name": "hc-2", "server_type": "cx22"}, ProviderNoCapacity)):
        with pytest.raises(kind):
            await driver.create_server(server_order(**wrong))
    with pytest.raises(ProviderRefused) as absent:
        await driver.set_labels("4000000000", LABELS)
    cloudsim.fault("update_server", "error")
    with pytest.raises(ProviderRefused) as invalid:
        await driver.set_labels("4000000000", LABELS)

    assert (absent.value.code, invalid.value.code) == ("not_found", "invalid_input")
    assert await driver.get_server("4000000000") is None


async def test_a_wrong_token_is_refused_and_appears_in_no_error_or_log(
    cloudsim: CloudsimProcess, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = driver_for(cloudsim, token="Wrong0Token" * 5)

    with pytest.raises(ProviderRefused) as refused:
        await wrong.find_servers(LABELS)

    assert refused.value.code == "unauthorized"
    assert "Wrong0" not in full_error_text(refused.value) + repr(wrong) + caplog.text
    await wrong.aclose()


async def test_a_call_that_cannot_connect_is_retryable_and_not_of_unknown_outcome() -> None:
    driver = HetznerProvider(
        f"http://127.0.0.1:{free_port()}/v1", TOKEN, timeout_s=2, ssh_public_key=PUBLIC_KEY, ssh_key_name="k"
    )

    with pytest.raises(ProviderRetry) as failed:
        await driver.delete_server("1")

    assert failed.value.code == "not_connected"
    await driver.aclose()


async def test_deleting_a_server_that_is_being_deleted_is_no_error(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.terminate()
    await cloudsim.start(stop_grace_s=PATIENCE_S)
    created = await driver.create_server(server_order(user_data=user_data()))
    await until(lambda: cloudsim.server(created.server.id)["alive"])
    # A frozen agent makes the deletion of its server last until cloudsim kills the agent.
    agent = cloudsim.server(created.server.id)["pid"]
    await stop_short(agent)

    await driver.delete_server(created.server.id)
    await driver.delete_server(created.server.id)

    server = await driver.get_server(created.server.id)
    assert server is not None
    assert server.status == "deleting"
    assert cloudsim.requests("delete_server") == 2
    os.kill(agent, signal.SIGCONT)
    await until(lambda: is_gone(driver, created.server.id))


async def test_a_delete_that_is_refused_succeeds_if_the_server_has_vanished_meanwhile(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    created = await driver.create_server(server_order())
    await wait_until_running(driver, created.server.id)
    cloudsim.fault("delete_server", "locked")
    cloudsim.call("POST", f"/_sim/servers/{created.server.id}/vanish")

    await driver.delete_server(created.server.id)


async def test_a_locked_server_that_is_not_being_deleted_can_be_deleted_later(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    created = await driver.create_server(server_order())
    await wait_until_running(driver, created.server.id)
    cloudsim.fault("delete_server", "locked")

    with pytest.raises(ProviderLater):
        await driver.delete_server(created.server.id)

    await driver.delete_server(created.server.id)
    await until(lambda: is_gone(driver, created.server.id))


async def test_a_provider_that_cannot_delete_a_server_now_is_not_asked_about_it(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("delete_server", "server_error", status=503, code="maintenance", retry_after_s=70)
    before = cloudsim.requests("get_server")

    with pytest.raises(ProviderLater) as away:
        await driver.delete_server("1")

    assert away.value.retry_after_s == 70
    assert cloudsim.requests("get_server") == before
