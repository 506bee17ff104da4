"""Every operation of the contract and every kind of caller: who gets in, and how the others are refused and change nothing."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest

from hydracore.auth import create_api_key
from tests.api_server import Api, bearer
from tests.instance_fixtures import (
    RunningInstance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
)

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTRACT = json.loads((Path(__file__).parents[1] / "contract" / "openapi.json").read_text())

#: The status of the answer, by the type of the caller.
OF_INSTANCE = {"owner": 200, "other_customer": 403, "other_tenant": 404, "admin": 200, "platform": 200}
OF_STAFF = OF_INSTANCE | {"owner": 403}
OF_OWNER = OF_INSTANCE | {"admin": 403, "platform": 403}
OF_ANYBODY = dict.fromkeys(OF_INSTANCE, 200)


class Case(NamedTuple):
    statuses: dict[str, int]
    body: Any = None


#: What is sent, and what each type of caller is answered. The instance is ann's.
CASES = {
    "GET /v1/instances": Case(OF_ANYBODY),
    "POST /v1/instances": Case(
        dict.fromkeys(OF_INSTANCE, 202) | {"other_customer": 403},
        {"region_id": "local", "tier_id": "starter", "customer_id": "ann"},
    ),
    "POST /v1/instances/admin/{instance_id}/rotate-key": Case(OF_STAFF | {"other_customer": 403}),
    "GET /v1/instances/by-key/{idempotency_key}": Case(OF_ANYBODY),
    "POST /v1/instances/cleanup": Case(OF_ANYBODY | {"owner": 403, "other_customer": 403}),
    "GET /v1/instances/{instance_id}": Case(OF_INSTANCE),
    "DELETE /v1/instances/{instance_id}": Case(OF_INSTANCE),
    "POST /v1/instances/{instance_id}/chat": Case(OF_INSTANCE, {"message": "Hello"}),
    "GET /v1/instances/{instance_id}/config": Case(OF_INSTANCE),
    "POST /v1/instances/{instance_id}/config": Case(OF_INSTANCE, {"agent_name": "Eve"}),
    "PATCH /v1/instances/{instance_id}/consent": Case(OF_OWNER, {"consent_debug_access": True}),
    "GET /v1/instances/{instance_id}/conversations": Case(OF_OWNER),
    "GET /v1/instances/{instance_id}/conversations/{conversation_id}": Case(OF_OWNER),
    "GET /v1/instances/{instance_id}/logs": Case(OF_INSTANCE),
    "PATCH /v1/instances/{instance_id}/model-policy": Case(OF_INSTANCE, {"max_tokens": 9}),
    "GET /v1/instances/{instance_id}/platform-config": Case(OF_INSTANCE),
    "PATCH /v1/instances/{instance_id}/platform-config": Case(OF_INSTANCE, {"advanced": {"a": 1}}),
    "GET /v1/instances/{instance_id}/runtime": Case(OF_INSTANCE),
    "POST /v1/instances/{instance_id}/updates/apply": Case(OF_INSTANCE, {"force": True}),
    "GET /v1/instances/{instance_id}/usage": Case(OF_INSTANCE),
}

CALLER_TYPES: dict[str, dict[str, str]] = {
    "owner": bearer(user="ann"),
    "other_customer": bearer(user="bob"),
    "other_tenant": bearer(tenant="rival", user="ann", role="admin"),
    "admin": bearer(user="root", role="admin"),
    "platform": bearer(tenant="ours", user="ops", role="platform"),
}

UNAUTHENTICATED: dict[str, dict[str, str]] = {
    "no_token": {},
    "nonsense": {"Authorization": "Bearer nonsense"},
    "another_scheme": {"Authorization": "Basic YW5uOmFubg=="},
    "expired": bearer(user="ann", expires_at=time.time() - 1),
    "not_signed_by_us": {"Authorization": bearer(user="ann")["Authorization"][:-3] + "abc"},
    "unknown_key": {"X-Api-Key": f"hck_{uuid4().hex}_{'x' * 43}"},
}


async def test_every_operation_of_the_contract_has_a_case() -> None:
    served = {f"{method.upper()} {path}" for path, methods in CONTRACT["paths"].items() for method in methods}

    assert CASES.keys() == served


async def send(instance: RunningInstance, operation: str, headers: dict[str, str]) -> int:
    method, _, path = operation.partition(" ")
    path = path.format(instance_id=instance.instance_id, idempotency_key="some-key", conversation_id="c-1")
    answer = await instance.api.client.request(method, path, json=CASES[operation].body, headers=headers)
    return answer.status_code


async def commands(connection: psycopg.AsyncConnection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM command")).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("operation", CASES)
async def test_each_caller_gets_the_expected_status_and_a_refused_call_changes_nothing(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, operation: str
) -> None:
    statuses = CASES[operation].statuses
    refused = {name for name, status in statuses.items() if status >= 400}
    before = await commands(owner_conn)

    strangers = {name: await send(instance, operation, headers) for name, headers in UNAUTHENTICATED.items()}
    outsiders = {name: await send(instance, operation, CALLER_TYPES[name]) for name in refused}
    called = len(instance.agent.calls)
    after = await commands(owner_conn)

    assert strangers == dict.fromkeys(UNAUTHENTICATED, 401)
    assert outsiders == {name: statuses[name] for name in refused}
    assert (after, called) == (before, 0)
    # A key that has just been rotated cannot be rotated again: only one of the permitted callers can try.
    welcome = [name for name in statuses if name not in refused]
    for name in welcome[:1] if "rotate-key" in operation else welcome:
        assert (name, await send(instance, operation, CALLER_TYPES[name])) == (name, statuses[name])


@pytest.mark.parametrize("operation", CASES)
async def test_an_api_key_is_an_admin_or_the_customer_it_acts_for(
    instance: RunningInstance, owner_conn: psycopg.AsyncConnection, operation: str
) -> None:
    key = {"X-Api-Key": await create_api_key(owner_conn, tenant_id="acme", name="test")}
    statuses = CASES[operation].statuses

    for name, headers in {"other_customer": {"X-User-Id": "bob"}, "owner": {"X-User-Id": "ann"}, "admin": {}}.items():
        assert (name, await send(instance, operation, key | headers)) == (name, statuses[name])


async def test_an_instance_of_another_tenant_is_indistinguishable_from_an_absent_one(instance: RunningInstance) -> None:
    rival = CALLER_TYPES["other_tenant"]
    method, path = "GET", f"/v1/instances/{instance.instance_id}"

    for suffix in (
        "",
        "/config",
        "/platform-config",
        "/logs",
        "/runtime",
        "/usage",
        "/conversations",
        "/events",
        "?version=1",
    ):
        there = await instance.api.client.request(method, path + suffix, headers=rival)
        absent = await instance.api.client.request(method, f"/v1/instances/{uuid4()}{suffix}", headers=rival)
        assert (there.status_code, there.content) == (absent.status_code, absent.content)


async def test_lists_show_only_instances_that_the_caller_may_see(instance: RunningInstance, api: Api) -> None:
    shown = {
        name: str(instance.instance_id) in (await api.client.get("/v1/instances", headers=headers)).text
        for name, headers in CALLER_TYPES.items()
    }

    assert shown == {"owner": True, "other_customer": False, "other_tenant": False, "admin": True, "platform": True}
