"""Instances over HTTP, on a real server and a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import pytest_asyncio

from events import commands as c
from events import keys
from events.ids import command_id_for, instance_id_for
from events.lifecycle import DELETED
from events.record import Origin
from events.state import TEARDOWN_STEPS
from hydracore.auth import create_api_key, revoke_api_key
from tests.api_server import Api
from tests.use_fixtures import module_api_fixture, shared_owner_conn_fixture, tenant_api_fixture
from tests.waiting import until

__all__ = ["module_api_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {"region_id": "local", "tier_id": "starter"}


async def order(api: Api, headers: dict[str, str], **fields: Any) -> str:
    answer = await api.client.post("/v1/instances", json=ORDER | fields, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["instance_id"]


async def finish_deletion(api: Api, instance_id: str) -> None:
    """What the workers would do."""
    commands = [c.RecordTeardownStep(at_ms=1, step=step) for step in TEARDOWN_STEPS]
    for command in (*commands, c.CompleteDeletion(at_ms=1)):
        origin = Origin(actor="worker", command_id=uuid4(), correlation_id=uuid4())
        await api.parts.store.execute(UUID(instance_id), command, origin)


async def listed(api: Api, headers: dict[str, str], query: str = "") -> list[str]:
    answer = await api.client.get(f"/v1/instances{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["instances"]]


@pytest_asyncio.fixture(loop_scope="module")
async def new_events(owner_conn: psycopg.AsyncConnection) -> Callable[[], Awaitable[int]]:
    """How many events there are that were not there before the test, of whoever."""

    async def count() -> int:
        row = await (await owner_conn.execute("SELECT count(*) FROM event")).fetchone()
        assert row is not None
        return row[0]

    before = await count()

    async def counted() -> int:
        return await count() - before

    return counted


async def test_an_order_is_answered_at_once_and_can_be_read_at_once(api: Api) -> None:
    ann = api.token(email="ann@example.com")

    answer = await api.client.post(
        "/v1/instances", json=ORDER | {"idempotency_key": "k1", "agent_name": "Ada"}, headers=ann
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
    body = ORDER | {"idempotency_key": "k1", "workflow_slugs": ["a"]}

    answers = await asyncio.gather(*(api.client.post("/v1/instances", json=body, headers=ann) for _ in range(8)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert await new_events() == 1


async def test_the_same_key_with_another_body_is_a_conflict_and_writes_nothing(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann = api.token()
    await order(api, ann, idempotency_key="k1")

    answer = await api.client.post(
        "/v1/instances", json=ORDER | {"idempotency_key": "k1", "agent_name": "Other"}, headers=ann
    )

    assert answer.status_code == 409
    assert answer.json() == {"detail": "This idempotency key was used with another request"}
    assert await new_events() == 1


async def test_a_field_that_is_left_out_and_one_that_is_null_are_the_same_request(api: Api) -> None:
    ann = api.token()
    first = await order(api, ann, idempotency_key="k1")

    again = await order(api, ann, idempotency_key="k1", agent_name=None, preset_id="personal_assistant", unknown=1)

    assert again == first


async def test_the_key_may_come_as_a_header_and_must_agree_with_the_body(api: Api) -> None:
    ann = api.token()
    by_header = await api.client.post("/v1/instances", json=ORDER, headers=ann | {"Idempotency-Key": "k1"})
    by_body = await order(api, ann, idempotency_key="k1")

    differs = await api.client.post(
        "/v1/instances", json=ORDER | {"idempotency_key": "k2"}, headers=ann | {"Idempotency-Key": "k1"}
    )

    in_utf8 = await api.client.post(
        "/v1/instances", json=ORDER, headers=httpx.Headers(ann | {"Idempotency-Key": "schlüssel"}, encoding="utf-8")
    )

    assert by_header.json()["instance_id"] == by_body
    assert in_utf8.json()["instance_id"] == await order(api, ann, idempotency_key="schlüssel")
    assert differs.status_code == 422
    assert differs.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


async def test_orders_without_a_key_are_different_instances(api: Api) -> None:
    ann = api.token()

    assert await order(api, ann) != await order(api, ann)


async def test_unknown_choices_are_refused_together_and_write_nothing(
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


async def test_customers_order_for_themselves_and_admins_for_anyone(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann, bob = api.token(), api.token(user="bob")
    boss = api.token(user="boss", role="admin", email="boss@example.com")

    refused = await api.client.post("/v1/instances", json=ORDER | {"customer_id": "bob"}, headers=ann)
    for_bob = await order(api, boss, customer_id="bob", idempotency_key="k")
    for_self = await order(api, ann, customer_id="ann", idempotency_key="k")

    assert refused.status_code == 403
    assert await listed(api, bob) == [for_bob]
    assert await listed(api, ann) == [for_self]
    (of_bob,) = (await api.client.get("/v1/instances", headers=bob)).json()["instances"]
    assert of_bob["customer_email"] is None, "whose address it is nobody has said"
    assert await new_events() == 2


async def test_each_role_sees_what_it_may(api: Api) -> None:
    ann, bob, boss = api.token(), api.token(user="bob"), api.token(user="boss", role="admin")
    other = f"other-than-{api.tenant}"
    stranger, staff = api.token(tenant=other, user="boss", role="admin"), api.token(user="op", role="platform")
    before = set(await listed(api, staff))
    of_ann, of_bob = await order(api, ann), await order(api, bob)
    of_other = await order(api, api.token(tenant=other))

    assert await listed(api, ann) == [of_ann]
    assert await listed(api, bob) == [of_bob]
    assert set(await listed(api, boss)) == {of_ann, of_bob}
    assert await listed(api, stranger) == [of_other]
    assert set(await listed(api, staff)) - before == {of_ann, of_bob, of_other}


VIEWS = ["", "/logs", "/runtime"]


@pytest.mark.parametrize("view", VIEWS)
async def test_each_role_may_look_at_what_it_may(api: Api, view: str) -> None:
    of_ann = await order(api, api.token())
    path = f"/v1/instances/{of_ann}{view}"

    async def status(headers: dict[str, str], where: str = path) -> tuple[int, Any]:
        answer = await api.client.get(where, headers=headers)
        return answer.status_code, answer.json().get("detail")

    assert (await status(api.token()))[0] == 200
    assert (await status(api.token(user="boss", role="admin")))[0] == 200
    assert (await status(api.token(tenant="other", user="op", role="platform")))[0] == 200
    assert (await status(api.token(user="bob")))[0] == 403
    assert (await status({}))[0] == 401
    absent = await status(api.token(), f"/v1/instances/{uuid4()}{view}")
    assert absent == (404, "Instance not found")
    assert await status(api.token(tenant="other")) == absent
    assert await status(api.token(tenant="other", role="admin")) == absent


async def test_deleting_is_only_for_those_who_may_and_says_how_far_it_is(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann = api.token()
    instance_id = await order(api, ann)
    path = f"/v1/instances/{instance_id}"
    for headers, status in [
        ({}, 401),
        (api.token(user="bob"), 403),
        (api.token(tenant="other", role="admin"), 404),
    ]:
        assert (await api.client.delete(path, headers=headers)).status_code == status
    assert await new_events() == 1

    first = (await api.client.delete(path, headers=ann)).json()
    second = (await api.client.delete(path, headers=ann)).json()
    await finish_deletion(api, instance_id)
    third = (await api.client.delete(path, headers=ann)).json()

    assert (first["already_deleted"], first["status"], first["instance_id"]) == (False, "deleting", instance_id)
    assert (second["already_deleted"], second["status"]) == (False, "deleting")
    assert (third["already_deleted"], third["status"]) == (True, "deleted")


async def test_a_deleted_instance_can_be_looked_at_and_is_listed_when_asked_for(api: Api) -> None:
    ann = api.token()
    kept, gone = await order(api, ann), await order(api, ann, idempotency_key="gone")
    await api.client.delete(f"/v1/instances/{gone}", headers=ann)
    assert set(await listed(api, ann)) == {kept, gone}
    await finish_deletion(api, gone)

    assert await listed(api, ann) == [kept]
    assert await listed(api, ann, "?status=deleted") == [gone]
    assert set(await listed(api, ann, "?include_deleted=true")) == {kept, gone}
    assert (await api.client.get(f"/v1/instances/{gone}", headers=ann)).json()["status"] == DELETED
    assert (await api.client.get("/v1/instances/by-key/gone", headers=ann)).json()["status"] == DELETED
    assert await order(api, ann, idempotency_key="gone") == gone


async def test_a_list_shows_each_change_at_once(api: Api) -> None:
    ann = api.token()
    made = [await order(api, ann) for _ in range(3)]

    for instance_id in made:
        await api.client.delete(f"/v1/instances/{instance_id}", headers=ann)
        answer = (await api.client.get("/v1/instances", headers=ann)).json()["instances"]

        shown = {item["id"]: item["status"] for item in answer}
        told = {each: (await api.client.get(f"/v1/instances/{each}", headers=ann)).json()["status"] for each in made}
        assert shown == told


async def test_the_address_of_an_erased_customer_is_no_longer_listed(
    api: Api, owner_conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", 0.5)
    ann = api.token(email='"customer_email":null@example.com')
    await order(api, ann, agent_name='"customer_email":null')

    async def shown() -> tuple[str, str | None]:
        item = (await api.client.get("/v1/instances", headers=ann)).json()["instances"][0]
        return item["agent_name"], item["customer_email"]

    async def is_gone() -> bool:
        return await shown() == ('"customer_email":null', None)

    # The second time from memory, and as the page that it was.
    before = [await shown() for _ in range(3)]
    await owner_conn.execute(
        "UPDATE customer_key SET wrapped_key = NULL, destroyed_at = now() WHERE tenant_id = %s", (api.tenant,)
    )

    assert before == [('"customer_email":null', '"customer_email":null@example.com')] * 3
    await until(is_gone, seconds_max=20)


async def test_pages_of_two_sizes_that_read_the_same_rows_are_two_pages(api: Api) -> None:
    ann = api.token()
    for _ in range(3):
        await order(api, ann)

    async def page(limit: int) -> tuple[int, bool]:
        answer = await api.client.get(f"/v1/instances?limit={limit}", headers=ann)
        return len(answer.json()["instances"]), "next" in answer.links

    assert [await page(limit) for limit in (3, 2, 3, 2)] == [(3, False), (2, True), (3, False), (2, True)]


async def test_pages_follow_each_other_through_links_without_gap_or_repeat(api: Api) -> None:
    ann = api.token()
    made = {await order(api, ann) for _ in range(7)}

    seen: list[str] = []
    page = "/v1/instances?limit=3&include_deleted=true&status=pending"
    pages = 0
    while page:
        answer = await api.client.get(page, headers=ann)
        seen += [item["id"] for item in answer.json()["instances"]]
        page = answer.links["next"]["url"] if "next" in answer.links else ""
        pages += 1

    assert pages == 3
    assert len(seen) == 7
    assert set(seen) == made
    assert await listed(api, ann) == seen


@pytest.mark.parametrize(
    ("query", "where", "kind"),
    [
        ("limit=0", "limit", "greater_than_equal"),
        ("limit=1001", "limit", "less_than_equal"),
        ("limit=x", "limit", "int_parsing"),
        ("status=gone", "status", "literal_error"),
        ("include_deleted=maybe", "include_deleted", "bool_parsing"),
        ("cursor=x", "cursor", "value_error"),
        ("cursor=" + "x" * 201, "cursor", "string_too_long"),
        ("cursor=MDAwMS0wMS0wMVQwMDowMDowMFovMTIz", "cursor", "value_error"),
    ],
)
async def test_bad_list_queries_are_refused(api: Api, query: str, where: str, kind: str) -> None:
    answer = await api.client.get(f"/v1/instances?{query}", headers=api.token())

    assert answer.status_code == 422
    assert [(problem["loc"], problem["type"]) for problem in answer.json()["detail"]] == [(["query", where], kind)]


@pytest.mark.parametrize("key", ["plain", "with space", "a/b//c", "ü%2F?#&", "..", "x" * 255])
async def test_an_order_is_found_by_any_key_that_it_may_have(api: Api, key: str) -> None:
    ann = api.token()
    instance_id = await order(api, ann, idempotency_key=key)

    found = await api.client.get(
        "/v1/instances/by-key/" + "".join(f"%{byte:02X}" for byte in key.encode()), headers=ann
    )

    assert found.json()["instance_id"] == instance_id
    assert found.json()["found"] is True


async def test_polling_by_key_stays_among_those_whom_the_caller_may_see(api: Api) -> None:
    ann, bob, boss = api.token(), api.token(user="bob"), api.token(user="boss", role="admin")
    of_ann = await order(api, ann, idempotency_key="k")
    of_bob = await order(api, bob, idempotency_key="k")

    async def poll(headers: dict[str, str]) -> dict[str, Any]:
        answer = await api.client.get("/v1/instances/by-key/k", headers=headers)
        assert answer.status_code == 200
        return answer.json()

    assert (await poll(ann))["instance_id"] == of_ann
    assert (await poll(bob))["instance_id"] == of_bob
    assert (await poll(boss))["instance_id"] in {of_ann, of_bob}
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


async def test_an_api_key_acts_as_admin_or_as_a_customer_until_it_is_revoked(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    key = await create_api_key(owner_conn, tenant_id=api.tenant, name="backend")
    of_ann = await order(api, api.token())
    as_admin, as_bob = {"X-Api-Key": key}, {"X-Api-Key": key, "X-User-Id": "bob"}

    of_bob = await order(api, as_bob)
    for_eve = await order(api, as_admin, customer_id="eve")

    assert set(await listed(api, as_admin)) == {of_ann, of_bob, for_eve}
    assert await listed(api, as_bob) == [of_bob]
    assert (await api.client.get(f"/v1/instances/{of_ann}", headers=as_bob)).status_code == 403
    assert await revoke_api_key(owner_conn, UUID(key.split("_")[1]))

    async def is_refused() -> bool:
        return (await api.client.get("/v1/instances", headers=as_admin)).status_code == 401

    await until(is_refused, seconds_max=1)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Api-Key": "hck_" + "0" * 32 + "_" + "x" * 43},
        {"X-Api-Key": "nonsense"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic dTpw"},
        {"Authorization": "Bearer"},
        {},
    ],
    ids=str,
)
async def test_nobody_credible_is_told_so_and_nothing_else(api: Api, headers: dict[str, str]) -> None:
    answers = [
        await api.client.get("/v1/instances/not-a-uuid", headers=headers),
        await api.client.post("/v1/instances", content=b"{", headers=headers),
        await api.client.get("/v1/instances?limit=0", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [401] * 3
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert all(list(answer.json()) == ["detail"] for answer in answers)


async def test_an_expired_token_and_a_malformed_acting_user_are_refused(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    key = await create_api_key(owner_conn, tenant_id=api.tenant, name="backend")

    expired = await api.client.get("/v1/instances", headers=api.token(expires_at=1_000_000_000))
    malformed = [
        await api.client.get("/v1/instances", headers={"X-Api-Key": key, "X-User-Id": user_id})
        for user_id in ("a b", "")
    ]

    assert (expired.status_code, expired.json()) == (401, {"detail": "Token expired"})
    assert [answer.status_code for answer in malformed] == [401, 401]


async def test_nothing_personal_stands_in_the_log_in_clear(api: Api, owner_conn: psycopg.AsyncConnection) -> None:
    ann = api.token(email="ann@example.com")
    await order(api, ann, user_display_name="Ann of Green Gables", idempotency_key="k")

    rows = await (
        await owner_conn.execute(
            "SELECT row_to_json(e)::text FROM event e UNION ALL SELECT row_to_json(c)::text FROM command c"
            " UNION ALL SELECT row_to_json(i)::text FROM instance i"
        )
    ).fetchall()

    assert rows
    for secret in ("ann@example.com", "Green Gables"):
        assert all(secret not in row[0] for row in rows)
