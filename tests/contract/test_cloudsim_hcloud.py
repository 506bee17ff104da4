"""cloudsim through the eyes of Hetzner's own client: what that understands, our driver may rely on."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hcloud import APIException, Client
from hcloud.actions import ActionFailedException
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import ServerCreatePublicNetwork

from tests.cloudsim_fixtures import (  # noqa: F401 - fixtures
    PUBLIC_KEY,
    CloudsimProcess,
    cloudsim_fixture,
    module_cloudsim_fixture,
)

#: Untyped: in the client's types everything may be absent; here it must be present, or the test that reads it fails.
Create = Callable[..., Any]


@pytest.fixture
def client(cloudsim: CloudsimProcess) -> Client:
    return Client(token=cloudsim.token, api_endpoint=cloudsim.endpoint, poll_interval=0.02)


@pytest.fixture
def create(client: Client) -> Create:
    """Orders a server with what the test does not care about filled in."""

    def create_server(name: str, **given: Any) -> Any:
        usual: dict[str, Any] = {"server_type": ServerType(name="sim1"), "image": Image(name="debian-13")}
        return client.servers.create(name, **{**usual, **given})

    return create_server


def test_a_created_server_has_everything_that_was_ordered(client: Client, create: Create) -> None:
    key: Any = client.ssh_keys.create("ops", PUBLIC_KEY)

    created = create(
        "hc-1",
        server_type=ServerType(name="sim2"),
        location=Location(name="local2"),
        ssh_keys=[key],
        user_data="#cloud-config\n{}",
        labels={"installation": "i", "attempt": "1"},
    )

    server = created.server
    assert (server.name, server.status) == ("hc-1", "initializing")
    assert (server.server_type.name, server.location.name, server.image.name) == ("sim2", "local2", "debian-13")
    assert server.labels == {"installation": "i", "attempt": "1"}
    assert IPv4Address(server.public_net.ipv4.ip) in IPv4Network("127.32.0.0/12")
    assert abs(server.created - datetime.now(UTC)) < timedelta(minutes=1)
    assert created.root_password is None
    assert (created.action.command, created.action.status) == ("create_server", "running")
    assert [action.command for action in created.next_actions] == ["start_server"]


def test_a_created_server_runs_once_its_actions_are_done(client: Client, create: Create) -> None:
    created = create("hc-1")

    created.action.wait_until_finished()
    created.next_actions[0].wait_until_finished()

    server = client.servers.get_by_id(created.server.id)
    assert (server.status, server.locked) == ("running", False)
    action: Any = client.servers.actions.get_by_id(created.action.id)
    assert (action.status, action.progress) == ("success", 100)
    assert action.resources == [{"id": server.id, "type": "server"}]
    assert action.finished >= action.started
    assert [action.command for action in server.get_actions()] == ["create_server", "start_server"]


def test_a_server_without_a_key_gets_a_root_password(create: Create) -> None:
    created = create("hc-1")

    assert created.root_password


def test_a_server_created_without_start_stays_off_until_power_on(client: Client, create: Create) -> None:
    created = create("hc-1", start_after_create=False)
    created.action.wait_until_finished()
    assert created.next_actions == []
    assert client.servers.get_by_id(created.server.id).status == "off"

    created.server.power_on().wait_until_finished()

    assert client.servers.get_by_id(created.server.id).status == "running"


@pytest.mark.parametrize(
    ("verb", "status"), [("power_off", "off"), ("shutdown", "off"), ("reboot", "running"), ("reset", "running")]
)
def test_power_actions_end_in_the_right_status(client: Client, create: Create, verb: str, status: str) -> None:
    created = create("hc-1")
    created.next_actions[0].wait_until_finished()

    getattr(created.server, verb)().wait_until_finished()

    assert client.servers.get_by_id(created.server.id).status == status


def test_ipv4_can_be_left_out_and_no_address_is_assigned_twice(create: Create) -> None:
    without = create("hc-0", public_net=ServerCreatePublicNetwork(enable_ipv4=False, enable_ipv6=True)).server
    servers = [create(f"hc-{number}").server for number in range(1, 4)]

    assert without.public_net.ipv4 is None
    assert without.public_net.ipv6 is not None
    assert len({server.public_net.ipv4.ip for server in servers}) == 3


def test_servers_are_found_by_label_over_several_pages(client: Client, create: Create) -> None:
    ours = [create(f"hc-{number:03d}", labels={"installation": "ours"}).server.id for number in range(53)]
    create("other", labels={"installation": "theirs"})

    found = client.servers.get_all(label_selector="installation==ours")
    page = client.servers.get_list(label_selector="installation==ours", page=2, per_page=20)

    assert [server.id for server in found] == ours
    assert [server.id for server in page.servers] == ours[20:40]
    assert page.meta.pagination is not None
    assert vars_of(page.meta.pagination) == {
        "page": 2,
        "per_page": 20,
        "previous_page": 1,
        "next_page": 3,
        "last_page": 3,
        "total_entries": 53,
    }


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("env=prod", ["a"]),
        ("env==prod,tier=1", ["a"]),
        ("env", ["a", "b"]),
        ("!env", ["c"]),
        ("env!=prod", ["b", "c"]),
        ("env in (prod, test)", ["a", "b"]),
        ("env notin (prod)", ["b", "c"]),
    ],
)
def test_label_selectors_are_understood(client: Client, create: Create, selector: str, names: list[str]) -> None:
    create("a", labels={"env": "prod", "tier": "1"})
    create("b", labels={"env": "test"})
    create("c")

    assert [server.name for server in client.servers.get_all(label_selector=selector)] == names


def test_name_and_labels_can_be_changed(client: Client, create: Create) -> None:
    server = create("hc-1", labels={"attempt": "1"}).server

    server.update(name="hc-2", labels={"attempt": "2"})

    assert client.servers.get_by_name("hc-1") is None
    renamed = client.servers.get_by_name("hc-2")
    assert renamed is not None
    assert renamed.labels == {"attempt": "2"}


def test_a_deleted_server_is_gone_and_its_name_is_free(client: Client, create: Create) -> None:
    created = create("hc-1")
    created.next_actions[0].wait_until_finished()

    created.server.delete().wait_until_finished()

    with pytest.raises(APIException) as gone:
        client.servers.get_by_id(created.server.id)
    assert gone.value.code == "not_found"
    assert client.servers.get_all() == []
    assert create("hc-1").server.id > created.server.id


def test_a_server_name_can_be_taken_only_once(create: Create) -> None:
    create("hc-1")

    with pytest.raises(APIException) as refused:
        create("hc-1")

    assert refused.value.code == "uniqueness_error"
    assert refused.value.correlation_id


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_type": ServerType(name="cx22")},
        {"location": Location(name="fsn1")},
        {"image": Image(name="plan9")},
        {"labels": {"-bad-": "label"}},
        {"labels": {"label": "x" * 64}},
        {"user_data": "x" * 32_769},
        {"ssh_keys": [ServerType(name="no-such-key")]},
        {"name": "not a host name"},
    ],
)
def test_an_invalid_order_is_refused_as_invalid_input_and_creates_no_server(
    client: Client, create: Create, wrong: dict[str, Any]
) -> None:
    with pytest.raises(APIException) as refused:
        create(**{"name": "hc-1", **wrong})

    assert refused.value.code == "invalid_input"
    assert [field["name"] for field in refused.value.details["fields"]] == list(wrong)
    assert client.servers.get_all() == []


def test_user_data_may_be_32_kib(create: Create) -> None:
    assert create("hc-1", user_data="x" * 32_768).server.id


def test_a_wrong_token_is_unauthorized(cloudsim: CloudsimProcess) -> None:
    with pytest.raises(APIException) as refused:
        Client(token="wrong", api_endpoint=cloudsim.endpoint).servers.get_all()

    assert refused.value.code == "unauthorized"


def test_an_unknown_id_is_not_found(client: Client) -> None:
    for ask in (client.servers.get_by_id, client.actions.get_by_id, client.ssh_keys.get_by_id, client.images.get_by_id):
        for number in (4_000_000_000, 2**80):
            with pytest.raises(APIException) as refused:
                ask(number)
            assert refused.value.code == "not_found"


def test_an_action_can_fail(cloudsim: CloudsimProcess, client: Client, create: Create) -> None:
    cloudsim.fault("create_server", "action_error", code="unknown_error")
    created = create("hc-1")

    with pytest.raises(ActionFailedException) as failed:
        created.action.wait_until_finished()

    assert failed.value.action.error is not None
    assert failed.value.action.error["code"] == "unknown_error"
    assert client.servers.get_by_id(created.server.id).status == "off"


def test_ssh_keys_are_made_found_changed_and_deleted(client: Client) -> None:
    key: Any = client.ssh_keys.create("ops", PUBLIC_KEY, labels={"a": "b"})

    found = client.ssh_keys.get_by_fingerprint(key.fingerprint)
    assert found is not None
    assert found.id == key.id
    assert client.ssh_keys.get_by_id(key.id).public_key == PUBLIC_KEY
    for name in ("ops", "another"):
        with pytest.raises(APIException) as refused:
            client.ssh_keys.create(name, PUBLIC_KEY)
        assert refused.value.code == "uniqueness_error"
    with pytest.raises(APIException) as refused:
        client.ssh_keys.create("none", "not a key")
    assert refused.value.code == "invalid_input"
    assert client.ssh_keys.update(key, name="ops-2").name == "ops-2"
    assert client.ssh_keys.delete(key)
    assert client.ssh_keys.get_all() == []


def test_the_catalogue_has_types_with_prices_locations_and_images(client: Client) -> None:
    types: dict[Any, Any] = {kind.name: kind for kind in client.server_types.get_all()}
    assert {"sim1", "sim2", "sim4"} <= types.keys()
    assert {location.name for location in client.locations.get_all()} == {"local1", "local2"}
    assert client.images.get_by_name_and_architecture("debian-13", "x86") is not None

    sim1 = types["sim1"]

    prices = {price["location"]: price["price_monthly"] for price in sim1.prices}
    assert prices.keys() == {"local1", "local2"}
    assert all(float(price["gross"]) > float(price["net"]) > 0 for price in prices.values())
    assert all(place.available for place in sim1.locations)
    assert client.server_types.get_by_id(sim1.id).name == "sim1"


def vars_of(domain: Any) -> dict[str, Any]:
    return {name: getattr(domain, name) for name in domain.__api_properties__}
