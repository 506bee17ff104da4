"""Requests as no client of ours would write them, byte for byte, and the answer to each."""

from __future__ import annotations

import json
from uuid import uuid4

import psycopg
import pytest

from hydracore.auth import create_api_key
from hydracore.tokens import agent_key
from tests.api_server import MASTER_KEY, Api
from tests.instance_fixtures import (
    KEY_ID,
    RunningInstance,
    shared_api_fixture,
    shared_instance_fixture,
    shared_owner_conn_fixture,
)
from tests.wire import INSTANCE_REQUEST, bearer, exchange, request

__all__ = ["shared_api_fixture", "shared_instance_fixture", "shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_blanks_around_a_header_value_are_ignored(
    api: Api, instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    api_key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    key, chat = uuid4().hex, f"/v1/instances/{instance.instance_id}/chat"

    ordered = [
        await exchange(
            api, request("/v1/instances", bearer(api), f"Idempotency-Key:{line}", method="POST", body=INSTANCE_REQUEST)
        )
        for line in (key, f" {key} ", f"\t{key} \t")
    ]
    asked = await exchange(
        api, request(chat, bearer(api), "Idempotency-Key: abc ", method="POST", body={"message": "Hello"})
    )
    blank = await exchange(
        api, request(chat, bearer(api), "Idempotency-Key: \t ", method="POST", body={"message": "Hello"})
    )
    by_key = await exchange(
        api,
        request(
            f"/v1/instances/{instance.instance_id}", f"X-Api-Key: {api_key}\t", "X-User-Id: ann ", "X-Request-Id: r-1 "
        ),
    )

    assert {answer.status for answer in ordered} == {202}
    assert len({answer.body["instance_id"] for answer in ordered}) == 1
    assert asked.status == 200, asked
    assert instance.agent.calls_of("/api/chat")[-1].headers["idempotency-key"] == "abc"
    assert (blank.status, blank.body["detail"][0]["loc"]) == (422, ["header", "idempotency-key"])
    assert (by_key.status, by_key.headers["x-request-id"]) == (200, "r-1")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic", "Basic dTpw", "aaaa.bbbb.cccc", "Bearer x"])
async def test_an_api_key_beside_an_invalid_authorization_header_is_refused(
    api: Api, owner_conn: psycopg.AsyncConnection, value: str
) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"

    answer = await exchange(api, request("/v1/instances", key, f"Authorization: {value}"))

    assert (answer.status, answer.headers["www-authenticate"]) == (401, "bearer")
    assert (await exchange(api, request("/v1/instances", key))).status == 200


async def test_duplicate_credential_headers_are_refused(
    api: Api, instance: RunningInstance, owner_conn: psycopg.AsyncConnection
) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"
    agent = f"Authorization: Bearer {agent_key(MASTER_KEY, instance.instance_id, KEY_ID)}"

    answers = [
        await exchange(api, request("/v1/instances", bearer(api), "Authorization: Bearer x")),
        await exchange(api, request("/v1/instances", "Authorization: Bearer x", bearer(api))),
        await exchange(api, request("/v1/instances", key, key)),
        await exchange(api, request("/v1/instances", key, "X-User-Id: ann", "X-User-Id: bob")),
        await exchange(api, request("/v1/agent/heartbeat", agent, "Authorization: Bearer x", method="POST", body={})),
    ]

    assert [answer.status for answer in answers] == [401] * 5
    assert (await exchange(api, request("/v1/agent/heartbeat", agent, method="POST", body={}))).status == 422


async def test_duplicate_idempotency_keys_are_refused(api: Api, instance: RunningInstance) -> None:
    keys = ("Idempotency-Key: a", "Idempotency-Key: b")
    chat = f"/v1/instances/{instance.instance_id}/chat"

    ordered = await exchange(api, request("/v1/instances", bearer(api), *keys, method="POST", body=INSTANCE_REQUEST))
    asked = await exchange(api, request(chat, bearer(api), *keys, method="POST", body={"message": "Hello"}))

    for answer in (ordered, asked):
        assert answer.status == 422
        (problem,) = answer.body["detail"]
        assert (problem["loc"], problem["type"]) == (["header", "idempotency-key"], "value_error")
    assert instance.agent.calls_of("/api/chat") == []


async def test_trailers_do_not_count_as_headers(api: Api, owner_conn: psycopg.AsyncConnection) -> None:
    key = f"X-Api-Key: {await create_api_key(owner_conn, tenant_id='acme', name='backend')}"
    trailers = f"{bearer(api)}\r\nX-User-Id: bob\r\nIdempotency-Key: {(name := uuid4().hex)}\r\n"

    def chunked(*headers: str) -> bytes:
        head = request("/v1/instances", *headers, "Transfer-Encoding: chunked", method="POST")
        body = json.dumps(INSTANCE_REQUEST | {"customer_id": "ann"})
        return head + f"{len(body):x}\r\n{body}\r\n0\r\n{trailers}\r\n".encode()

    assert (await exchange(api, chunked())).status == 401
    for who in (key, bearer(api)):
        made = await exchange(api, chunked(who))
        assert made.status == 202, made
        assert made.body["idempotency_key"] != name


@pytest.mark.parametrize("path", ["/v1//instances/by-key/", "/v1/instances/by%2Dkey/", "//v1/instances/by-key%2F"])
async def test_an_idempotency_key_is_found_with_any_spelling_of_its_path(api: Api, path: str) -> None:
    ordered = await exchange(
        api,
        request(
            "/v1/instances",
            bearer(api),
            method="POST",
            body={**INSTANCE_REQUEST, "idempotency_key": (key := uuid4().hex)},
        ),
    )

    found = await exchange(api, request(path + key, bearer(api)))

    assert (found.status, found.body["found"]) == (200, True)
    assert found.body["instance_id"] == ordered.body["instance_id"]
