"""The Hetzner driver against a real cloudsim: every operation, its pages, its batches and the SSH key."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cloudsim_fixtures import PUBLIC_KEY, TOKEN, CloudsimProcess, driver_for
from tests.hetzner_calls import LABELS, is_gone, server_order, wait_until_running
from tests.waiting import until
from workers.providers.base import Provider, ProviderRetry
from workers.providers.hetzner import HetznerProvider

#: A public key of somebody else.
OTHER_PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


async def test_a_server_is_created_watched_found_relabelled_and_deleted(driver: Provider) -> None:
    created = await driver.create_server(server_order())
    assert created.server.name == "hc-1"
    assert len(created.action_ids) == 2

    server = await wait_until_running(driver, created.server.id)
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


async def test_all_pages_of_a_server_list_are_read(cloudsim: CloudsimProcess, driver: Provider) -> None:
    created = await asyncio.gather(*(driver.create_server(server_order(f"hc-{number}")) for number in range(101)))
    await driver.create_server(server_order("other", labels={"installation": "other"}))
    before = cloudsim.requests("list_servers")

    found = await driver.find_servers({"installation": "hydracore"})

    assert sorted(server.id for server in found) == sorted(each.server.id for each in created)
    # The first page twice: it says how many there are, and is read at last.
    assert cloudsim.requests("list_servers") == before + 4


async def test_actions_are_fetched_in_batches(cloudsim: CloudsimProcess, driver: Provider) -> None:
    created = await asyncio.gather(*(driver.create_server(server_order(f"hc-{number}")) for number in range(26)))
    ids = [action_id for each in created for action_id in each.action_ids]
    before = cloudsim.requests("get_actions")

    actions = await driver.get_actions([*ids, "999999999"])

    assert sorted(action.id for action in actions) == sorted(ids)
    assert cloudsim.requests("get_actions") == before + 3
    assert await driver.get_actions([]) == []


@pytest.mark.parametrize(
    ("fault", "codes"), [("action_error", ["no_power", "no_power"]), ("start_error", [None, "no_power"])]
)
async def test_a_failed_action_reports_its_error_code(
    cloudsim: CloudsimProcess, driver: Provider, fault: str, codes: list[str | None]
) -> None:
    cloudsim.fault("create_server", fault, code="no_power")
    created = await driver.create_server(server_order())

    async def ended() -> bool:
        return all(action.status != "running" for action in await driver.get_actions(created.action_ids))

    await until(ended)

    actions = await driver.get_actions(created.action_ids)
    assert [action.error_code for action in actions] == codes
    assert [action.status for action in actions] == ["success" if code is None else "error" for code in codes]
    server = await driver.get_server(created.server.id)
    assert server is not None
    assert server.status == "off"


async def test_the_ssh_key_is_created_once_by_concurrent_creates(cloudsim: CloudsimProcess, driver: Provider) -> None:
    before = cloudsim.requests("create_ssh_key")

    await asyncio.gather(*(driver.create_server(server_order(f"hc-{number}")) for number in range(5)))

    assert [(key["name"], key["public_key"]) for key in keys_of(cloudsim)] == [("hydracore", PUBLIC_KEY)]
    assert cloudsim.requests("create_ssh_key") == before + 1


async def test_an_existing_ssh_key_with_the_same_public_key_is_used(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "by-hand", "public_key": PUBLIC_KEY + " with another comment"})

    await driver.create_server(server_order())

    assert [key["name"] for key in keys_of(cloudsim)] == ["by-hand"]


async def test_an_ssh_key_gets_another_name_if_its_name_belongs_to_a_different_key(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "hydracore", "public_key": OTHER_PUBLIC_KEY})

    await driver.create_server(server_order())

    assert [key["name"][:10] for key in keys_of(cloudsim)] == ["hydracore", "hydracore-"]
    assert keys_of(cloudsim)[1]["public_key"] == PUBLIC_KEY


async def test_without_an_operator_s_ssh_key_drivers_share_one_throwaway_key(cloudsim: CloudsimProcess) -> None:
    drivers = [
        HetznerProvider(cloudsim.endpoint, TOKEN, timeout_s=5, ssh_public_key=None, ssh_key_name="hydracore")
        for _ in range(3)
    ]

    await asyncio.gather(*(driver.create_server(server_order(f"hc-{number}")) for number, driver in enumerate(drivers)))

    assert [key["name"] for key in keys_of(cloudsim)] == ["throwaway@hydracore"]
    for driver in drivers:
        await driver.aclose()


async def test_an_ssh_key_that_was_removed_at_the_provider_is_created_again(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    names = ["hc-2", "hc-3", "hc-4"]
    await driver.create_server(server_order("hc-1"))
    cloudsim.fault("create_server", "hold_before", name="hc-2")
    late = asyncio.create_task(driver.create_server(server_order("hc-2")))
    await until(cloudsim.held)
    cloudsim.call("DELETE", f"/v1/ssh_keys/{keys_of(cloudsim)[0]['id']}")

    under_way = await asyncio.gather(
        *(driver.create_server(server_order(name)) for name in names[1:]), return_exceptions=True
    )
    created = [await driver.create_server(server_order(name)) for name in names[1:]]
    looks_before = cloudsim.requests("list_ssh_keys")
    cloudsim.call("POST", "/_sim/release", {"all": True})
    under_way += await asyncio.gather(late, return_exceptions=True)
    created.insert(0, await driver.create_server(server_order("hc-2")))
    looks_after = cloudsim.requests("list_ssh_keys")

    assert [getattr(each, "code", None) for each in under_way] == ["ssh_key_gone"] * 3
    assert all(isinstance(each, ProviderRetry) for each in under_way)
    assert [each.server.name for each in created] == names
    assert len(keys_of(cloudsim)) == 1
    assert looks_after == looks_before, "a late failure does not discard the new key"


@pytest.mark.parametrize(("status", "code"), [(422, "invalid_input"), (404, "not_found")])
async def test_a_removed_ssh_key_is_noticed_even_if_other_keys_exist(
    cloudsim: CloudsimProcess, driver: Provider, status: int, code: str
) -> None:
    await driver.create_server(server_order("hc-1"))
    (ours,) = keys_of(cloudsim)
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "laptop", "public_key": OTHER_PUBLIC_KEY})
    cloudsim.call("DELETE", f"/v1/ssh_keys/{ours['id']}")
    cloudsim.fault("create_server", "error", name="hc-2", status=status, code=code)

    with pytest.raises(ProviderRetry, match="ssh_key_gone"):
        await driver.create_server(server_order("hc-2"))

    assert (await driver.create_server(server_order("hc-2"))).server.name == "hc-2"
    assert {key["name"] for key in keys_of(cloudsim)} == {"hydracore", "laptop"}


async def test_a_driver_that_loses_the_race_for_the_throwaway_key_uses_it_and_no_other_key(
    cloudsim: CloudsimProcess,
) -> None:
    cloudsim.call("POST", "/v1/ssh_keys", {"name": "laptop", "public_key": OTHER_PUBLIC_KEY})
    (laptop,) = keys_of(cloudsim)
    first, second = (
        HetznerProvider(cloudsim.endpoint, TOKEN, timeout_s=5, ssh_public_key=None, ssh_key_name="hydracore")
        for _ in range(2)
    )
    cloudsim.fault("create_ssh_key", "hold_before")
    late = asyncio.create_task(second.create_server(server_order("hc-2")))
    await until(cloudsim.held)
    await first.create_server(server_order("hc-1"))
    cloudsim.call("POST", "/_sim/release", {"all": True})
    await late

    # If it were used for servers, the provider would now refuse a create.
    cloudsim.call("DELETE", f"/v1/ssh_keys/{laptop['id']}")
    await second.create_server(server_order("hc-3"))

    assert [key["name"] for key in keys_of(cloudsim)] == ["throwaway@hydracore"]
    for driver in (first, second):
        await driver.aclose()


async def test_a_lost_answer_about_the_ssh_key_is_retryable_and_leaves_no_server_outcome_unknown(
    cloudsim: CloudsimProcess, driver: Provider
) -> None:
    cloudsim.fault("create_ssh_key", "drop_reply")

    with pytest.raises(ProviderRetry):
        await driver.create_server(server_order())
    await driver.create_server(server_order())

    assert [key["name"] for key in keys_of(cloudsim)] == ["hydracore"]


def keys_of(cloudsim: CloudsimProcess) -> list[dict[str, Any]]:
    return cloudsim.call("GET", "/v1/ssh_keys")["ssh_keys"]


async def test_a_cloudsim_on_this_machine_is_not_asked_through_a_proxy(
    cloudsim: CloudsimProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    driver = driver_for(cloudsim)

    assert await driver.get_server_named("nobody") is None
    await driver.aclose()
