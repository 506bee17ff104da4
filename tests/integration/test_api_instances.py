"""Instances over HTTP, on a real server and a real PostgreSQL: who sees and deletes which."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hydracore.auth import create_api_key, revoke_api_key
from tests.api_server import Api
from tests.instance_fixtures import module_api_fixture, shared_owner_conn_fixture, tenant_api_fixture
from tests.instance_requests import finish_deletion, listed_ids, new_events_fixture, request_instance
from tests.waiting import until

__all__ = ["module_api_fixture", "new_events_fixture", "shared_owner_conn_fixture", "tenant_api_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_each_role_lists_only_the_instances_that_it_may_see(api: Api) -> None:
    ann, bob, boss = api.token(), api.token(user="bob"), api.token(user="boss", role="admin")
    other = f"other-than-{api.tenant}"
    stranger, staff = api.token(tenant=other, user="boss", role="admin"), api.token(user="op", role="platform")
    before = set(await listed_ids(api, staff))
    of_ann, of_bob = await request_instance(api, ann), await request_instance(api, bob)
    of_other = await request_instance(api, api.token(tenant=other))

    assert await listed_ids(api, ann) == [of_ann]
    assert await listed_ids(api, bob) == [of_bob]
    assert set(await listed_ids(api, boss)) == {of_ann, of_bob}
    assert await listed_ids(api, stranger) == [of_other]
    assert set(await listed_ids(api, staff)) - before == {of_ann, of_bob, of_other}


VIEWS = ["", "/logs", "/runtime"]


@pytest.mark.parametrize("view", VIEWS)
async def test_each_role_can_read_only_the_instances_that_it_may_see(api: Api, view: str) -> None:
    of_ann = await request_instance(api, api.token())
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


async def test_only_permitted_callers_can_delete_and_the_answer_says_how_far_the_deletion_is(
    api: Api, new_events: Callable[[], Awaitable[int]]
) -> None:
    ann = api.token()
    instance_id = await request_instance(api, ann)
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


async def test_an_api_key_acts_as_admin_or_as_a_customer_until_it_is_revoked(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    key = await create_api_key(owner_conn, tenant_id=api.tenant, name="backend")
    of_ann = await request_instance(api, api.token())
    as_admin, as_bob = {"X-Api-Key": key}, {"X-Api-Key": key, "X-User-Id": "bob"}

    of_bob = await request_instance(api, as_bob)
    for_eve = await request_instance(api, as_admin, customer_id="eve")

    assert set(await listed_ids(api, as_admin)) == {of_ann, of_bob, for_eve}
    assert await listed_ids(api, as_bob) == [of_bob]
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
async def test_missing_or_bad_credentials_get_401_before_the_request_is_validated(
    api: Api, headers: dict[str, str]
) -> None:
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


async def test_no_personal_data_is_stored_in_clear(api: Api, owner_conn: psycopg.AsyncConnection) -> None:
    ann = api.token(email="ann@example.com")
    await request_instance(api, ann, user_display_name="Ann of Green Gables", idempotency_key="k")

    rows = await (
        await owner_conn.execute(
            "SELECT row_to_json(e)::text FROM event e UNION ALL SELECT row_to_json(c)::text FROM command c"
            " UNION ALL SELECT row_to_json(i)::text FROM instance i"
        )
    ).fetchall()

    assert rows
    for secret in ("ann@example.com", "Green Gables"):
        assert all(secret not in row[0] for row in rows)
