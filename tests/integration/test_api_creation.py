"""Orders of instances over HTTP: idempotent, made only for permitted customers, and answered at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from events.ids import command_id_for, instance_id_for
from tests.api_server import Api
from tests.instance_fixtures import module_api_fixture, shared_owner_conn_fixture, tenant_api_fixture
from tests.instance_requests import INSTANCE_REQUEST, listed_ids, new_events_fixture, request_instance

__all__ = ["module_api_fixture", "new_events_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_order_is_accepted_and_can_be_read_immediately(api: Api) -> None:
    ann = api.token(email="ann@example.com")

    answer = await api.client.post(
        "/v1/instances", json=INSTANCE_REQUEST | {"idempotency_key": "k1", "agent_name": "Ada"}, headers=ann
    )

    made = answer.json()
    instance_id = str(instance_id_for(tenant_id=api.tenant, customer_id="ann", idempotency_key="k1"))
    assert answer.status_code == 202
    assert (made["idempotency_key"], made["instance_id"]) == ("k1", instance_id)
    assert made["task_id"] == str(command_id_for(UUID(instance_id), "request"))
    detail = (await api.client.get(f"/v1/instances/{instance_id}", headers=ann)).json()
    assert detail["agent_name"] == "Ada"
    assert detail["status"] == "pending"
    assert detail["provisioning_stage"] == "queued"
    assert (detail["region_id"], detail["preset_id"], detail["runtime_type"]) == (
        "local",
        "personal_assistant",
        "expressclaw",
    )
    assert detail["capabilities"]["chat"] is True
    assert detail["created_at"].endswith("Z")
    item = (await api.client.get("/v1/instances", headers=ann)).json()["instances"][0]
    assert (item["id"], item["customer_email"], item["product_tier_name"]) == (
        instance_id,
        "ann@example.com",
        "Starter",
    )
    logs = (await api.client.get(f"/v1/instances/{instance_id}/logs", headers=ann)).json()
    assert logs["total"] == 1
    assert (logs["logs"][0]["seq"], logs["logs"][0]["stage"]) == (1, "queued")
    runtime = (await api.client.get(f"/v1/instances/{instance_id}/runtime", headers=ann)).json()
    assert (runtime["status"], runtime["last_heartbeat"], runtime["health_failures"]) == ("pending", None, 0)
    assert runtime["provision_logs"] == logs["logs"]


async def test_the_same_key_and_body_give_the_same_answer_and_one_instance(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann = api.token()
    body = INSTANCE_REQUEST | {"idempotency_key": "k1", "workflow_slugs": ["a"]}

    answers = await asyncio.gather(*(api.client.post("/v1/instances", json=body, headers=ann) for _ in range(8)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert await new_events() == 1


@pytest.mark.parametrize(
    "other",
    [
        {"agent_name": "Other"},
        {"manifest_id": "other"},
        {"preset_id": "customer_support"},
        {"recipe_id": "other"},
        {"tier_id": "standard"},
        {"user_display_name": "Other"},
        {"website_template_slug": "other"},
        {"workflow_slugs": []},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_the_same_key_with_another_body_is_a_conflict_and_writes_nothing(
    api: Api, new_events: Callable[[], Awaitable[int]], other: dict[str, Any]
) -> None:
    ann = api.token()
    await request_instance(api, ann, idempotency_key="k1")

    answer = await api.client.post(
        "/v1/instances", json=INSTANCE_REQUEST | {"idempotency_key": "k1"} | other, headers=ann
    )

    assert answer.status_code == 409
    assert answer.json() == {"detail": "This idempotency key was used with another request"}
    assert await new_events() == 1


async def test_leaving_a_field_out_and_setting_it_to_null_are_the_same_request(api: Api) -> None:
    ann = api.token()
    first = await request_instance(api, ann, idempotency_key="k1")

    again = await request_instance(
        api, ann, idempotency_key="k1", agent_name=None, preset_id="personal_assistant", unknown=1
    )

    assert again == first


async def test_the_idempotency_key_may_be_a_header_and_must_agree_with_the_body(api: Api) -> None:
    ann = api.token()
    by_header = await api.client.post("/v1/instances", json=INSTANCE_REQUEST, headers=ann | {"Idempotency-Key": "k1"})
    by_body = await request_instance(api, ann, idempotency_key="k1")

    differs = await api.client.post(
        "/v1/instances",
        json=INSTANCE_REQUEST | {"idempotency_key": "k2", "region_id": "mars"},
        headers=ann | {"Idempotency-Key": "k1"},
    )

    in_utf8 = await api.client.post(
        "/v1/instances",
        json=INSTANCE_REQUEST,
        headers=httpx.Headers(ann | {"Idempotency-Key": "schlüssel"}, encoding="utf-8"),
    )

    assert by_header.json()["instance_id"] == by_body
    assert in_utf8.json()["instance_id"] == await request_instance(api, ann, idempotency_key="schlüssel")
    assert differs.status_code == 422
    wrong = [each["loc"] for each in differs.json()["detail"]]
    assert wrong == [["header", "idempotency-key"], ["body", "region_id"]]


async def test_orders_without_an_idempotency_key_make_different_instances(api: Api) -> None:
    ann = api.token()

    assert await request_instance(api, ann) != await request_instance(api, ann)


async def test_an_unknown_region_tier_and_preset_are_refused_together_and_write_nothing(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    body = {"region_id": "fsn1", "tier_id": "huge", "preset_id": "poet"}

    answer = await api.client.post("/v1/instances", json=body, headers=api.token())

    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.json()["detail"]] == [
        ["body", "preset_id"],
        ["body", "region_id"],
        ["body", "tier_id"],
    ]
    assert "region is not available; available: local" in answer.text
    assert await new_events() == 0


async def test_customers_order_only_for_themselves_and_admins_for_any_customer(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann, bob = api.token(), api.token(user="bob")
    boss = api.token(user="boss", role="admin", email="boss@example.com")

    refused, wrong = [
        await api.client.post("/v1/instances", json=INSTANCE_REQUEST | {"customer_id": "bob"} | more, headers=ann)
        for more in ({}, {"region_id": "mars"})
    ]
    for_bob = await request_instance(api, boss, customer_id="bob", idempotency_key="k")
    by_bob = await request_instance(api, bob, idempotency_key="k")
    for_self = await request_instance(api, ann, customer_id="ann", idempotency_key="k")

    assert (refused.status_code, wrong.status_code) == (403, 422)
    assert by_bob == for_bob, "it is the same request, whichever caller makes it"
    assert await listed_ids(api, bob) == [for_bob]
    assert await listed_ids(api, ann) == [for_self]
    (of_bob,) = (await api.client.get("/v1/instances", headers=bob)).json()["instances"]
    assert of_bob["customer_email"] is None, "the address of the admin who orders is not the customer's"
    assert of_bob["customer_id"] == "bob"
    assert await new_events() == 2


@pytest.mark.parametrize("key", ["plain", "with space", "a/b//c", "ü%2F?#&", "..", "x" * 255, "/", "//", "/a/"])
async def test_an_order_is_found_by_its_idempotency_key_whatever_its_characters(api: Api, key: str) -> None:
    ann = api.token(user=uuid4().hex)
    path = "/v1/instances/by-key/" + "".join(f"%{byte:02X}" for byte in key.encode())

    absent = await api.client.get(path, headers=ann)
    instance_id = await request_instance(api, ann, idempotency_key=key)
    found = await api.client.get(path, headers=ann)
    head = await api.client.head(path, headers=ann)
    options = await api.client.options(path)

    assert (absent.status_code, absent.json()["found"]) == (200, False)
    assert (found.status_code, found.json()["found"]) == (200, True)
    assert found.json()["instance_id"] == instance_id
    assert head.status_code == 200
    assert options.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", ["/v1/instances/by-key", "/v1/instances/by-key/", "/v1//instances/by-key/"])
async def test_polling_without_an_idempotency_key_is_not_found(api: Api, path: str) -> None:
    answer = await api.client.get(path, headers=api.token())

    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_polling_by_key_finds_only_instances_that_the_caller_may_see(api: Api) -> None:
    ann, bob, boss = api.token(), api.token(user="bob"), api.token(user="boss", role="admin")
    of_ann = await request_instance(api, ann, idempotency_key="k")
    of_bob = await request_instance(api, bob, idempotency_key="k")

    async def poll(headers: dict[str, str]) -> dict[str, Any]:
        answer = await api.client.get("/v1/instances/by-key/k", headers=headers)
        assert answer.status_code == 200
        return answer.json()

    assert (await poll(ann))["instance_id"] == of_ann
    assert (await poll(bob))["instance_id"] == of_bob
    assert (await poll(boss))["instance_id"] == (await listed_ids(api, boss))[0]
    assert (await poll(api.token(tenant="x", user="op", role="platform")))["found"] is True
    absent = await poll(api.token(user="eve"))
    assert absent == await poll(api.token(tenant="other", role="admin"))
    assert absent["found"] is False
    assert absent["logs"] == []
    assert set(absent) == {
        "bootstrap_seq",
        "bootstrap_stage",
        "error_message",
        "found",
        "hostname",
        "instance_id",
        "logs",
        "provisioning_stage",
        "status",
    }
    assert (await api.client.get("/v1/instances/by-key/a%00b", headers=ann)).status_code == 422
    assert (await api.client.get("/v1/instances/by-key/%ff", headers=boss)).json() == absent
