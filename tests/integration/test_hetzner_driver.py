"""The Hetzner driver against a real cloudsim: every operation, every way to fail, and not a secret anywhere."""

import asyncio
import contextlib
import logging
import os
import signal
import time
import traceback
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from hydracore.embedded.ports import free_port
from tests.cloudsim_fixtures import (  # noqa: F401 - fixtures
    PUBLIC_KEY,
    TOKEN,
    CloudsimProcess,
    cloudsim_fixture,
    driver_fixture,
    driver_for,
    module_cloudsim_fixture,
    stop_short,
    user_data,
)
from tests.waiting import PATIENCE_S, until
from workers.providers.base import (
    CreateServer,
    Provider,
    ProviderError,
    ProviderLater,
    ProviderNameTaken,
    ProviderNoCapacity,
    ProviderOutcomeUnknown,
    ProviderRefused,
    ProviderRetry,
    Server,
)
from workers.providers.hetzner import HetznerProvider

LABELS = {"installation": "hydracore", "instance": str(uuid4()), "attempt": "1"}


def order(name: str = "hc-1", **changes: Any) -> CreateServer:
    usual = CreateServer(
        name=name,
        server_type="sim1",
        location="local1",
        image="debian-13",
        user_data="#cloud-config\n{}",
        labels=LABELS,
    )
    return msgspec.structs.replace(usual, **changes)


@pytest.fixture
async def hasty(cloudsim: CloudsimProcess) -> AsyncGenerator[HetznerProvider]:
    """A driver that gives up waiting soon, but not for what a busy machine takes to answer."""
    provider = driver_for(cloudsim, timeout_s=3.0)
    yield provider
    await provider.aclose()


async def running(driver: Provider, server_id: str) -> Server:
    async def is_running() -> bool:
        server = await driver.get_server(server_id)
        return server is not None and server.status == "running"

    await until(is_running)
    server = await driver.get_server(server_id)
    assert server is not None
    return server


# Operations


async def test_a_server_is_created_watched_found_relabelled_and_deleted(driver: Provider) -> None:
    created = await driver.create_server(order())
    assert created.server.name == "hc-1"
    assert len(created.action_ids) == 2

    server = await running(driver, created.server.id)
    assert (server.location, server.server_type, server.labels) == ("local1", "sim1", LABELS)
    assert server.ipv4 is not None
    assert server.ipv6 is not None
    assert (await driver.get_server_named("hc-1"), await driver.get_server_named("hc-2")) == (server, None)
    assert abs(server.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    actions = await driver.get_actions(created.action_ids)
    assert [(action.id, action.status, action.error_code) for action in actions] == [
        (action_id, "success", None) for action_id in created.action_ids
    ]

    await driver.set_labels(server.id, {**LABELS, "attempt": "2"})
    assert await driver.find_servers(LABELS) == []
    assert [found.id for found in await driver.find_servers({**LABELS, "attempt": "2"})] == [server.id]

    await driver.delete_server(server.id)
    await until(lambda: is_gone(driver, server.id))
    await driver.delete_server(server.id)


async def is_gone(driver: Provider, server_id: str) -> bool:
    return await driver.get_server(server_id) is None


async def test_all_pages_are_read(cloudsim: CloudsimProcess, driver: Provider) -> None:
    created = await asyncio.gather(*(driver.create_server(order(f"hc-{number}")) for number in range(101)))
    await driver.create_server(order("other", labels={"installation": "other"}))
    before = cloudsim.requests("list_servers")

    found = await driver.find_servers({"installation": "hydracore"})

    assert sorted(server.id for server in found) == sorted(each.server.id for each in created)
    assert cloudsim.requests("list_servers") == before + 3


async def test_actions_are_asked_for_in_batches(cloudsim: CloudsimProcess, driver: Provider) -> None:
    created = await asyncio.gather(*(driver.create_server(order(f"hc-{number}")) for number in range(26)))
    ids = [action_id for each in created for action_id in each.action_ids]
    before = cloudsim.requests("get_actions")

    actions = await driver.get_actions([*ids, "999999999"])

    assert sorted(action.id for action in actions) == sorted(ids)
    assert cloudsim.requests("get_actions") == before + 3
    assert await driver.get_actions([]) == []


@pytest.mark.parametrize(
    ("fault", "codes"), [("action_error", ["no_power", "no_power"]), ("start_error", [None, "no_power"])]
)
async def test_a_failed_action_tells_its_code(
    cloudsim: CloudsimProcess, driver: Provider, fault: str, codes: list[str | None]
) -> None:
    cloudsim.fault("create_server", fault, code="no_power")
    created = await driver.create_server(order())

    async def ended() -> bool:
        return all(action.status != "running" for action in await driver.get_actions(created.action_ids))

    await until(ended)

    actions = await driver.get_actions(created.action_ids)
    assert [action.error_code for action in actions] == codes
    assert [action.status for action in actions] == ["success" if code is None else "error" for code in codes]
    server = await driver.get_server(created.server.id)
    assert server is not None
    assert server.status == "off"


async def test_a_list_that_lost_a_server_between_two_pages_is_read_again(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    servers = [(await driver.create_server(order(f"hc-{number:02d}"))).server for number in range(52)]
    await running(driver, servers[-1].id)
    cloudsim.fault("list_servers", "hold_before", skip=1)
    finding = asyncio.create_task(driver.find_servers({"installation": "hydracore"}))
    await until(cloudsim.held)

    cloudsim.call("POST", f"/_sim/servers/{servers[0].id}/vanish")
    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert {server.id for server in await finding} == {server.id for server in servers[1:]}


# The key that goes with every server


async def test_the_ssh_key_is_made_once_and_no_root_password_with_it(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    before = cloudsim.requests("create_ssh_key")

    await asyncio.gather(*(driver.create_server(order(f"hc-{number}")) for number in range(5)))

    assert [(key["name"], key["public_key"]) for key in keys_of(cloudsim)] == [("hydracore", PUBLIC_KEY)]
    assert cloudsim.requests("create_ssh_key") == before + 1


async def test_a_key_that_is_there_is_adopted(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "by-hand", "public_key": PUBLIC_KEY + " with another comment"})

    await driver.create_server(order())

    assert [key["name"] for key in keys_of(cloudsim)] == ["by-hand"]


async def test_a_changed_key_gets_a_name_of_its_own(cloudsim: CloudsimProcess, driver: Provider) -> None:
    old = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "hydracore", "public_key": old})

    await driver.create_server(order())

    assert [key["name"][:10] for key in keys_of(cloudsim)] == ["hydracore", "hydracore-"]
    assert keys_of(cloudsim)[1]["public_key"] == PUBLIC_KEY


async def test_without_a_key_of_the_operators_a_throwaway_one_is_shared(cloudsim: CloudsimProcess) -> None:
    drivers = [
        HetznerProvider(cloudsim.endpoint, TOKEN, timeout_s=5, ssh_public_key=None, ssh_key_name="hydracore")
        for _ in range(3)
    ]

    await asyncio.gather(*(driver.create_server(order(f"hc-{number}")) for number, driver in enumerate(drivers)))

    assert [key["name"] for key in keys_of(cloudsim)] == ["throwaway@hydracore"]
    for driver in drivers:
        await driver.aclose()


async def test_a_key_that_was_removed_meanwhile_is_made_again(cloudsim: CloudsimProcess, driver: Provider) -> None:
    names = ["hc-2", "hc-3", "hc-4"]
    await driver.create_server(order("hc-1"))
    cloudsim.fault("create_server", "hold_before", name="hc-2")
    late = asyncio.create_task(driver.create_server(order("hc-2")))
    await until(cloudsim.held)
    cloudsim.call("DELETE", f"/v1/ssh_keys/{keys_of(cloudsim)[0]['id']}")

    under_way = await asyncio.gather(*(driver.create_server(order(name)) for name in names[1:]), return_exceptions=True)
    created = [await driver.create_server(order(name)) for name in names[1:]]
    cloudsim.call("POST", "/_sim/release", {"all": True})
    under_way += await asyncio.gather(late, return_exceptions=True)
    created.insert(0, await driver.create_server(order("hc-2")))

    assert [getattr(each, "code", None) for each in under_way] == ["ssh_key_gone"] * 3
    assert all(isinstance(each, ProviderRetry) for each in under_way)
    assert [each.server.name for each in created] == names
    assert len(keys_of(cloudsim)) == 1


async def test_a_lost_answer_about_the_key_says_nothing_about_a_server(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("create_ssh_key", "drop_reply")

    with pytest.raises(ProviderRetry):
        await driver.create_server(order())
    await driver.create_server(order())

    assert [key["name"] for key in keys_of(cloudsim)] == ["hydracore"]


def keys_of(cloudsim: CloudsimProcess) -> list[dict[str, Any]]:
    return cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]


# Errors


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
        ({"fault": "error", "status": 400, "code": "json_error"}, (ProviderRefused, "json_error")),
        ({"fault": "error", "code": "invalid_input"}, (ProviderRefused, "invalid_input")),
        ({"fault": "error", "code": "brand_new"}, (ProviderRefused, "brand_new")),
        ({"fault": "error", "code": f"leak of {TOKEN}"}, (ProviderRefused, "unreadable_code")),
    ],
)
async def test_each_error_has_its_class_and_makes_no_server(
    cloudsim: CloudsimProcess,
    driver: Provider,
    fault: dict[str, Any],
    expected: tuple[type[ProviderError], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    cloudsim.fault("create_server", **fault)

    with pytest.raises(ProviderError) as failed:
        await driver.create_server(order(user_data=user_data()))

    assert (type(failed.value), failed.value.code) == expected
    assert failed.value.correlation_id is not None
    assert_no_secret(failed.value, caplog)
    assert cloudsim.servers() == []


async def test_real_refusals_have_their_classes(cloudsim: CloudsimProcess, driver: Provider) -> None:
    await driver.create_server(order())

    for wrong, kind in (({}, ProviderNameTaken), ({"name": "hc-2", "server_type": "cx22"}, ProviderRefused)):
        with pytest.raises(kind):
            await driver.create_server(order(**wrong))
    with pytest.raises(ProviderRefused) as absent:
        await driver.set_labels("4000000000", LABELS)

    assert absent.value.code == "not_found"
    assert await driver.get_server("4000000000") is None


async def test_a_wrong_token_is_refused(cloudsim: CloudsimProcess, caplog: pytest.LogCaptureFixture) -> None:
    wrong = driver_for(cloudsim, token="Wrong0Token" * 5)

    with pytest.raises(ProviderRefused) as refused:
        await wrong.find_servers(LABELS)

    assert refused.value.code == "unauthorized"
    assert "Wrong0" not in everything_said_about(refused.value) + repr(wrong) + caplog.text
    await wrong.aclose()


async def test_no_connection_means_that_nothing_happened() -> None:
    driver = HetznerProvider(
        f"http://127.0.0.1:{free_port()}/v1", TOKEN, timeout_s=2, ssh_public_key=PUBLIC_KEY, ssh_key_name="k"
    )

    with pytest.raises(ProviderRetry) as failed:
        await driver.delete_server("1")

    assert failed.value.code == "not_connected"
    await driver.aclose()


def everything_said_about(error: BaseException) -> str:
    """All that could end in a log: the error, its fields, and whatever it is chained to."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(error.__context__)


def assert_no_secret(error: ProviderError, caplog: pytest.LogCaptureFixture) -> None:
    said = everything_said_about(error) + caplog.text
    assert TOKEN[:8] not in said
    assert "enrol_token" not in said
    assert "root-" not in said


# Outcomes that nobody knows


async def test_a_create_without_an_answer_is_unknown_and_found_by_label(
    cloudsim: CloudsimProcess, driver: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    cloudsim.fault("create_server", "drop_reply")

    with pytest.raises(ProviderOutcomeUnknown) as unknown:
        await driver.create_server(order(user_data=user_data()))
    found = await driver.find_servers(LABELS)

    assert [server.name for server in found] == ["hc-1"]
    assert unknown.value.code == "connection_broke"
    assert_no_secret(unknown.value, caplog)


async def test_a_create_that_takes_too_long_is_unknown_and_may_still_happen(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider
) -> None:
    cloudsim.fault("create_server", "hold_before")

    with pytest.raises(ProviderOutcomeUnknown):
        await hasty.create_server(order())
    assert await driver.find_servers(LABELS) == []
    await until(lambda: [held["client_gone"] for held in cloudsim.held()] == [True])
    cloudsim.call("POST", "/_sim/release", {"id": cloudsim.held()[0]["id"], "apply": True})

    assert [server.name for server in await driver.find_servers(LABELS)] == ["hc-1"]


async def test_a_held_request_that_is_not_applied_never_happened(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.fault("create_server", "hold_before")
    creating = asyncio.create_task(driver.create_server(order()))
    await until(cloudsim.held)

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": False})

    with pytest.raises(ProviderOutcomeUnknown):
        await creating
    assert cloudsim.held() == []
    assert cloudsim.call("GET", "/_sim/servers") == {"servers": []}


async def test_an_answer_that_is_held_comes_when_it_is_released(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.fault("create_server", "hold_after")
    creating = asyncio.create_task(driver.create_server(order()))
    await until(cloudsim.held)
    assert [server["name"] for server in cloudsim.servers()] == ["hc-1"]
    assert cloudsim.held()[0]["applied"]

    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert (await creating).server.name == "hc-1"


@pytest.mark.parametrize("fault", ["drop_reply", "hold_after"])
async def test_a_delete_without_an_answer_is_unknown_and_done(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider, fault: str
) -> None:
    created = await driver.create_server(order())
    await running(driver, created.server.id)
    cloudsim.fault("delete_server", fault)

    with pytest.raises(ProviderOutcomeUnknown):
        await hasty.delete_server(created.server.id)

    await until(lambda: is_gone(driver, created.server.id))


@pytest.mark.parametrize("fault", ["drop_reply", "hold_before"])
async def test_a_read_without_an_answer_is_simply_repeated(
    cloudsim: CloudsimProcess, driver: Provider, hasty: Provider, fault: str
) -> None:
    created = await driver.create_server(order())
    cloudsim.fault("get_server", fault)

    with pytest.raises(ProviderRetry):
        await hasty.get_server(created.server.id)

    # Nothing came in its time, so the provider is left alone for a moment first.
    await until(lambda: is_there(hasty, created.server.id))


async def is_there(driver: Provider, server_id: str) -> bool:
    with contextlib.suppress(ProviderRetry):
        return await driver.get_server(server_id) is not None
    return False


# Busy servers


async def test_deleting_what_is_being_deleted_is_no_error(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.terminate()
    await cloudsim.start(stop_grace_s=PATIENCE_S)
    created = await driver.create_server(order(user_data=user_data()))
    await until(lambda: cloudsim.server(created.server.id)["alive"])
    # An agent that does not hear makes its server's end last as long as cloudsim has patience.
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


async def test_a_server_that_went_while_its_delete_was_refused_is_deleted(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    created = await driver.create_server(order())
    await running(driver, created.server.id)
    cloudsim.fault("delete_server", "locked")
    cloudsim.call("POST", f"/_sim/servers/{created.server.id}/vanish")

    await driver.delete_server(created.server.id)


async def test_a_server_that_is_locked_for_another_reason_is_deleted_later(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    created = await driver.create_server(order())
    await running(driver, created.server.id)
    cloudsim.fault("delete_server", "locked")

    with pytest.raises(ProviderLater):
        await driver.delete_server(created.server.id)

    await driver.delete_server(created.server.id)
    await until(lambda: is_gone(driver, created.server.id))


# The request limit


async def test_a_429_stops_all_calls_of_the_driver_until_it_is_over(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "rate_limit", retry_after_s=1)
    with pytest.raises(ProviderRetry) as limited:
        await driver.get_server("1")
    began_s = time.monotonic()

    await asyncio.gather(driver.get_server("1"), driver.find_servers(LABELS))

    assert limited.value.retry_after_s == 1.0
    assert time.monotonic() - began_s >= 0.9


async def test_a_provider_that_is_away_says_for_how_long(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.fault("get_server", "server_error", status=503, code="unavailable", retry_after_s=70)

    with pytest.raises(ProviderLater) as away:
        await driver.get_server("1")

    assert away.value.retry_after_s == 70


async def test_a_wait_longer_than_a_call_may_take_is_refused_at_once(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("get_server", "rate_limit", retry_after_s=3000)
    with pytest.raises(ProviderRetry):
        await driver.get_server("1")
    before = cloudsim.call("GET", "/_sim/requests")

    with pytest.raises(ProviderRetry) as limited:
        await driver.find_servers(LABELS)

    assert 2900 < limited.value.retry_after_s <= 3000
    assert cloudsim.call("GET", "/_sim/requests") == before


async def test_calls_slow_down_before_the_allowance_is_spent(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.call("PUT", "/_sim/rate_limit", {"limit": 1000, "remaining": 12, "refill_per_s": 20})

    for _ in range(30):
        await driver.get_server("1")

    # Twelve were left, thirty were asked: without slowing down, the thirteenth would have met a 429.


async def test_an_empty_allowance_is_a_429(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.call("PUT", "/_sim/rate_limit", {"limit": 100, "remaining": 0, "refill_per_s": 0.001})

    with pytest.raises(ProviderRetry) as limited:
        await driver.get_server("1")

    assert limited.value.code == "rate_limit_exceeded"


async def test_many_calls_at_once_are_bounded_and_all_answered(cloudsim: CloudsimProcess, driver: Provider) -> None:
    cloudsim.fault("get_server", "hold_before", times=None)
    asking = [asyncio.create_task(driver.get_server("1")) for _ in range(40)]
    await until(lambda: len(cloudsim.held()) == 16)

    cloudsim.call("DELETE", "/_sim/faults")
    cloudsim.call("POST", "/_sim/release", {"all": True, "apply": True})

    assert await asyncio.gather(*asking) == [None] * 40
