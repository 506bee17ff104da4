"""What holds for every request: ids, limits, error shapes, and a database that goes away and comes back."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from uuid import uuid4

import httpx
import psycopg
import pytest
import structlog

from events.patience import patiently
from hydracore.api import health, operations
from hydracore.db import pool
from tests.api_server import Api, running_api
from tests.services import OwnServices
from tests.waiting import PATIENCE_S, until

ORDER = {"region_id": "local", "tier_id": "starter"}


@pytest.fixture
async def api(database_url: str, redis_url: str) -> AsyncGenerator[Api]:
    async with running_api(database_url, redis_url, body_max_bytes=1024) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nothing/here", 404, "Not Found"),
        ("PUT", "/v1/instances", 405, "Method Not Allowed"),
        ("GET", "/v1/instances", 401, "Not authenticated"),
    ],
)
async def test_every_error_has_the_same_shape_a_request_id_and_the_headers(
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


async def test_every_path_says_which_methods_it_has(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()

    for path, methods in document["paths"].items():
        url = re.sub(r"{\w+}", "x", path)
        asked = await api.client.options(url)
        refused = await api.client.put(url)

        has = {method.upper() for method in methods} | {"OPTIONS"} | ({"HEAD"} if "get" in methods else set())
        assert (asked.status_code, asked.content) == (204, b"")
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
async def test_a_request_id_is_kept_where_it_is_harmless(api: Api, given: str, kept: bool) -> None:  # noqa: FBT001 - a parameter
    answer = await api.client.get("/health/live", headers={b"X-Request-Id": given.encode("latin-1")})

    assert (answer.headers["x-request-id"] == given) is kept


async def test_the_request_id_goes_into_the_log_as_what_belongs_together(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    request_id = str(uuid4())

    await api.client.post("/v1/instances", json=ORDER, headers=api.token() | {"X-Request-Id": request_id})
    await api.client.post("/v1/instances", json=ORDER, headers=api.token() | {"X-Request-Id": "not-a-uuid"})

    rows = await (await owner_conn.execute("SELECT correlation_id::text, actor FROM command")).fetchall()
    assert request_id in {row[0] for row in rows}
    assert {row[1] for row in rows} == {"customer:ann"}


async def test_bodies_above_the_limit_are_refused_announced_or_not(api: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 500

    announced = await api.client.post("/v1/instances", content=b" " * 1025, headers=api.token())
    streamed = await api.client.post("/v1/instances", content=chunks(), headers=api.token())
    at_limit = await api.client.post("/v1/instances", content=b" " * 1024, headers=api.token())

    assert announced.status_code == streamed.status_code == 413
    assert announced.json() == {"detail": "The body is larger than 1024 bytes"}
    assert at_limit.status_code == 422


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "BODY_TIMEOUT_S", 0.1)
    token = api.token()["Authorization"]
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)

    writer.write(
        f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 10\r\n\r\n{{".encode()
    )
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    writer.close()

    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_client_that_goes_away_in_its_body_leaves_no_error_behind(api: Api) -> None:
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


async def test_an_unexpected_failure_is_a_bare_500_and_one_log_line_with_its_reason(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("ALTER TABLE instance RENAME TO elsewhere")

    with structlog.testing.capture_logs() as lines:
        answer = await api.client.get("/v1/instances", headers=api.token())

    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal server error"})
    assert "x-request-id" in answer.headers
    assert [line["event"] for line in lines] == ["request_failed"]
    assert isinstance(lines[0]["exc_info"], psycopg.errors.UndefinedTable)


async def test_what_is_logged_of_a_request_names_no_instance_of_the_one_before_it(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("ALTER TABLE instance RENAME TO elsewhere")
    address = httpx.URL(api.url)
    head = f"HTTP/1.1\r\nHost: x\r\nAuthorization: {api.token()['Authorization']}\r\n"
    of_one = f"GET /v1/instances/{(instance_id := uuid4())} {head}\r\n"
    of_none = f"GET /v1/instances {head}Connection: close\r\n\r\n"

    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write((of_one + of_none).encode())
        answers = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()

    assert answers.count(b"HTTP/1.1 500") == 2
    assert [line.get("instance_id") for line in lines] == [str(instance_id), None]


async def test_the_document_is_served_to_everybody(api: Api) -> None:
    answer = await api.client.get("/openapi.json")

    assert answer.json()["openapi"] == "3.1.0"
    assert "/v1/instances" in answer.json()["paths"]


async def test_health_tells_what_is_down_and_what_that_means(database_url: str) -> None:
    async with running_api(database_url, "redis://127.0.0.1:1/0") as api:
        live, ready = await api.client.get("/health/live"), await api.client.get("/health/ready")
        order = await api.client.post("/v1/instances", json=ORDER, headers=api.token())

    assert live.json() == {"status": "ok"}
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "degraded", "checks": {"database": "ok", "redis": "down"}},
    )
    assert order.status_code == 202


async def test_a_database_that_restarts_costs_time_and_no_answer(own_services: OwnServices) -> None:
    async with running_api(own_services.database_url, own_services.redis_url) as api:
        ann = api.token()
        made = (await api.client.post("/v1/instances", json=ORDER, headers=ann)).json()["instance_id"]

        answers = await asyncio.gather(
            own_services.kill("postgres"),
            *(api.client.get(f"/v1/instances/{made}", headers=ann, timeout=30) for _ in range(8)),
            *(api.client.post("/v1/instances", json=ORDER, headers=ann, timeout=30) for _ in range(8)),
        )

        after = (await api.client.get("/v1/instances", headers=ann)).json()["instances"]
    statuses = [answer.status_code for answer in answers if answer is not None]
    assert statuses == [200] * 8 + [202] * 8
    assert len(after) == 9


async def test_a_database_that_stays_away_is_told_as_such(
    own_services: OwnServices,
) -> None:
    async with running_api(own_services.database_url, own_services.redis_url) as api:
        ann = api.token()
        await api.client.post("/v1/instances", json=ORDER, headers=ann)
        await own_services.supervisor.stop(["postgres"], grace_s=10)

        read, write, ready = await asyncio.gather(
            api.client.get("/v1/instances", headers=ann, timeout=60),
            api.client.post("/v1/instances", json=ORDER, headers=ann, timeout=60),
            api.client.get("/health/ready", timeout=60),
        )
        live = await api.client.get("/health/live")

        assert (read.status_code, write.status_code, ready.status_code, live.status_code) == (503, 503, 503, 200)
        assert int(read.headers["retry-after"]) >= 1
        assert read.json() == write.json() == {"detail": "Temporarily unavailable; try again"}
        assert ready.json()["checks"] == {"database": "down", "redis": "ok"}


async def test_a_database_that_hangs_is_told_as_such_too(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ANSWER_S_MAX", 0.5)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.2)
    assert patiently.__kwdefaults__ is not None
    monkeypatch.setitem(patiently.__kwdefaults__, "patience_s", 0.5)
    async with running_api(own_services.database_url, own_services.redis_url) as api:
        ann = api.token()
        made = (await api.client.post("/v1/instances", json=ORDER, headers=ann)).json()["instance_id"]

        with own_services.frozen("postgres"):
            answers = await asyncio.gather(
                api.client.get("/health/ready"),
                *(api.client.get(f"/v1/instances/{made}", headers=ann) for _ in range(8)),
                *(api.client.post("/v1/instances", json=ORDER, headers=ann) for _ in range(8)),
            )
            live = await api.client.get("/health/live")

        await until(lambda: _is_ready(api))
        listed = (await api.client.get("/v1/instances", headers=ann)).json()["instances"]
    assert [answer.status_code for answer in answers] == [503] * 17
    assert answers[0].json()["checks"]["database"] == "down"
    assert all(answer.headers["retry-after"] == "2" for answer in answers[1:])
    assert live.status_code == 200
    assert made in {each["id"] for each in listed}


async def _is_ready(api: Api) -> bool:
    return (await api.client.get("/health/ready")).status_code == 200
