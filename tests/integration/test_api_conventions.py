"""What holds for every request: ids, limits, methods and error shapes."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from uuid import uuid4

import httpx
import psycopg
import pytest
import pytest_asyncio
import structlog

from hydracore.api import operations
from tests.api_server import Api
from tests.instance_fixtures import shared_api, shared_owner_conn_fixture
from tests.services import Services
from tests.waiting import PATIENCE_S

__all__ = ["shared_owner_conn_fixture"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {"region_id": "local", "tier_id": "starter"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(services: Services) -> AsyncGenerator[Api]:
    async with shared_api(services, body_max_bytes=1024) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nothing/here", 404, "Not Found"),
        ("PUT", "/v1/instances", 405, "Method Not Allowed"),
        ("GET", "/v1/instances", 401, "Not authenticated"),
    ],
)
async def test_every_error_has_the_same_shape_a_request_id_and_the_usual_headers(
    api: Api, method: str, path: str, status: int, detail: str
) -> None:
    answer = await api.client.request(method, path)

    assert (answer.status_code, answer.json()) == (status, {"detail": detail})
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    if status == 405:
        assert set(answer.headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_every_path_lists_its_methods_in_the_allow_header(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()

    for path, methods in document["paths"].items():
        url = re.sub(r"{\w+}", "x", path)
        asked = await api.client.options(url)
        refused = await api.client.put(url)

        has = {method.upper() for method in methods} | {"OPTIONS"} | ({"HEAD"} if "get" in methods else set())
        assert (asked.status_code, asked.content) == (204, b"")
        # There is no content, and so not even a length (RFC 9110, section 8.6).
        assert not {"content-length", "content-type"} & asked.headers.keys()
        assert (refused.status_code, refused.json()) == (405, {"detail": "Method Not Allowed"})
        for answer in (asked, refused):
            assert set(answer.headers["allow"].split(", ")) == has, path


async def test_head_answers_what_get_does_without_the_body(api: Api) -> None:
    paths = ["/health/live", "/health/ready", "/openapi.json", "/v1/instances", f"/v1/instances/{uuid4()}"]

    asked = [(await api.client.head(path, headers=api.token()), path) for path in paths]
    no_operation = await api.client.head("/v1/agent/heartbeat")

    for answer, path in asked:
        full = await api.client.get(path, headers=api.token())
        assert (answer.status_code, answer.content) == (full.status_code, b"")
        assert answer.headers["content-length"] == str(len(full.content))
        assert answer.headers["content-type"] == full.headers["content-type"]
    assert no_operation.status_code == 405


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("ä", False)]
)
async def test_a_request_id_of_the_client_is_kept_only_if_it_is_well_formed(api: Api, given: str, kept: bool) -> None:  # noqa: FBT001 - a parameter
    answer = await api.client.get("/health/live", headers={b"X-Request-Id": given.encode("latin-1")})

    assert (answer.headers["x-request-id"] == given) is kept


async def test_a_request_id_that_is_a_uuid_is_logged_as_the_correlation_id(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    request_id = str(uuid4())

    await api.client.post("/v1/instances", json=ORDER, headers=api.token() | {"X-Request-Id": request_id})
    await api.client.post("/v1/instances", json=ORDER, headers=api.token() | {"X-Request-Id": "not-a-uuid"})

    rows = await (await owner_conn.execute("SELECT correlation_id::text, actor FROM command")).fetchall()
    assert request_id in {row[0] for row in rows}
    assert {row[1] for row in rows} == {"customer:ann"}


async def test_bodies_above_the_limit_are_refused_with_or_without_a_content_length(api: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 500

    announced = await api.client.post("/v1/instances", content=b" " * 1025, headers=api.token())
    streamed = await api.client.post("/v1/instances", content=chunks(), headers=api.token())
    at_limit = await api.client.post("/v1/instances", content=b" " * 1024, headers=api.token())
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"POST /v1/instances HTTP/1.1\r\nAuthorization: {api.token()['Authorization']}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"401\r\n" + b" " * 1025 + b"\r\n0\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        at_once = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert announced.status_code == streamed.status_code == 413
    assert at_once.startswith(b"HTTP/1.1 413")
    assert announced.json() == {"detail": "The body is larger than 1024 bytes"}
    assert at_limit.status_code == 422


async def test_a_body_that_does_not_arrive_in_time_gets_408(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "BODY_TIMEOUT_S", 0.1)
    token = api.token()["Authorization"]
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)

    writer.write(
        f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 10\r\n\r\n{{".encode()
    )
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_client_that_disconnects_within_its_body_causes_no_log_line(api: Api) -> None:
    token = api.token()["Authorization"]
    address = httpx.URL(api.url)
    with structlog.testing.capture_logs() as lines:
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(
            f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 10\r\n\r\n{{".encode()
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await api.client.get("/health/live")).status_code == 200

    assert lines == []


async def test_the_openapi_document_is_served_without_authentication(api: Api) -> None:
    answer = await api.client.get("/openapi.json")

    assert answer.json()["openapi"] == "3.1.0"
    assert "/v1/instances" in answer.json()["paths"]
