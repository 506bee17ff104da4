"""What comes over the wire as no client of ours would write it: byte for byte, and the answer to each."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import psycopg
import pytest

from hydracore.auth import create_api_key
from tests.api_server import Api
from tests.use_fixtures import Used, shared_api_fixture, shared_owner_conn_fixture, shared_used_fixture
from tests.waiting import PATIENCE_S

__all__ = ["shared_api_fixture", "shared_owner_conn_fixture", "shared_used_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {"region_id": "local", "tier_id": "starter"}


class Answer(NamedTuple):
    """`content`: what came until the server closed the connection."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


async def exchange(api: Api, *pieces: bytes) -> Answer:
    """The one answer to what is sent; `pieces` go out one by one."""
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.read()
    finally:
        writer.close()
    status_line, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(status_line.split()[1]), headers, content)


def request(target: str, *headers: str, method: str = "GET", body: Any = None) -> bytes:
    """A request whose answer ends the connection. `headers` are lines, as they are."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if content:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def bearer(api: Api) -> str:
    return f"Authorization: {api.token()['Authorization']}"


async def test_blanks_around_a_header_s_value_are_no_part_of_it(
    api: Api, used: Used, owner_conn: psycopg.AsyncConnection
) -> None:
    api_key = await create_api_key(owner_conn, tenant_id="acme", name="backend")
    key, chat = uuid4().hex, f"/v1/instances/{used.instance_id}/chat"

    ordered = [
        await exchange(api, request("/v1/instances", bearer(api), f"Idempotency-Key:{line}", method="POST", body=ORDER))
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
            f"/v1/instances/{used.instance_id}", f"X-Api-Key: {api_key}\t", "X-User-Id: ann ", "X-Request-Id: r-1 "
        ),
    )

    assert {answer.status for answer in ordered} == {202}
    assert len({answer.body["instance_id"] for answer in ordered}) == 1
    assert asked.status == 200, asked
    assert used.agent.calls_of("/api/chat")[-1].headers["idempotency-key"] == "abc"
    assert (blank.status, blank.body["detail"][0]["loc"]) == (422, ["header", "idempotency-key"])
    assert (by_key.status, by_key.headers["x-request-id"]) == (200, "r-1")
