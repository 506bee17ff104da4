"""What callers are answered and what is logged when something fails, such as a database that goes away and comes back."""

import asyncio
import re
from collections.abc import AsyncGenerator
from uuid import uuid4

import httpx
import psycopg
import pytest
import structlog
from redis.asyncio import Redis

from events.retries import with_retries
from hydracore.api import health
from hydracore.db.answer_timeout import AnswerTimeoutConnection
from tests.api_server import Api, running_api
from tests.services import OwnServices
from tests.waiting import PATIENCE_S, until

ORDER = {"region_id": "local", "tier_id": "starter"}


@pytest.fixture
async def api(database_url: str, redis_url: str) -> AsyncGenerator[Api]:
    async with running_api(database_url, redis_url) as running:
        yield running


async def test_an_unexpected_failure_is_a_bare_500_and_one_log_line_with_its_reason(
    api: Api, owner_conn: psycopg.AsyncConnection
) -> None:
    await owner_conn.execute("ALTER TABLE instance RENAME TO elsewhere")

    with structlog.testing.capture_logs() as lines:
        answer = await api.client.get("/v1/instances", headers=api.token())

    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal server error"})
    await assert_has_the_usual_headers(api, answer)
    assert [line["event"] for line in lines] == ["request_failed"]
    assert isinstance(lines[0]["exc_info"], psycopg.errors.UndefinedTable)


async def test_log_lines_of_a_request_never_name_the_instance_of_the_previous_request(
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
        async with asyncio.timeout(PATIENCE_S):
            answers = await reader.read()
        writer.close()

    assert answers.count(b"HTTP/1.1 500") == 2
    assert [line.get("instance_id") for line in lines] == [str(instance_id), None]


async def test_without_redis_readiness_is_degraded_and_orders_are_still_accepted(database_url: str) -> None:
    async with running_api(database_url, "redis://127.0.0.1:1/0") as api:
        live, ready = await api.client.get("/health/live"), await api.client.get("/health/ready")
        order = await api.client.post("/v1/instances", json=ORDER, headers=api.token())

    assert live.json() == {"status": "ok"}
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "degraded", "checks": {"database": "ok", "redis": "down"}},
    )
    assert order.status_code == 202


async def test_a_redis_that_refuses_writes_is_reported_as_down(own_services: OwnServices) -> None:
    async with (
        running_api(own_services.database_url, own_services.redis_url) as api,
        Redis.from_url(own_services.redis_url) as redis,
    ):

        async def status() -> str:
            return (await api.client.get("/health/ready")).json()["checks"]["redis"]

        assert await status() == "ok"
        await redis.replicaof("127.0.0.1", "1")
        assert await status() == "down"
        await redis.replicaof("NO", "ONE")
        assert await status() == "ok"


async def test_concurrent_readiness_checks_share_one_redis_connection(
    own_services: OwnServices,
) -> None:
    async with (
        running_api(own_services.database_url, own_services.redis_url) as api,
        Redis.from_url(own_services.redis_url) as redis,
    ):

        async def connected() -> int:
            return (await redis.info("clients"))["connected_clients"]

        before = await connected()
        answers = await asyncio.gather(*(api.client.get("/health/ready") for _ in range(60)))

        assert {answer.status_code for answer in answers} == {200}
        assert await connected() == before + 1


async def test_requests_during_a_database_restart_are_all_answered(own_services: OwnServices) -> None:
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


@pytest.mark.long
async def test_requests_get_503_and_readiness_fails_while_the_database_is_down(
    own_services: OwnServices,
) -> None:
    async with running_api(own_services.database_url, own_services.redis_url) as api:
        ann = api.token()
        await api.client.post("/v1/instances", json=ORDER, headers=ann)
        await own_services.supervisor.stop(["postgres"], grace_s=10)

        with structlog.testing.capture_logs() as lines:
            read, write, ready = await asyncio.gather(
                api.client.get("/v1/instances", headers=ann, timeout=60),
                api.client.post("/v1/instances", json=ORDER, headers=ann, timeout=60),
                api.client.get("/health/ready", timeout=60),
            )
        live = await api.client.get("/health/live")
        # It has no idempotency key, so that there is no earlier request to look for.
        wrong = await api.client.post("/v1/instances", json=ORDER | {"region_id": "mars"}, headers=ann, timeout=1)

        assert wrong.status_code == 422
        assert (read.status_code, write.status_code, ready.status_code, live.status_code) == (503, 503, 503, 200)
        assert int(read.headers["retry-after"]) >= 1
        assert read.json() == write.json() == {"detail": "Temporarily unavailable; try again"}
        for answer in (read, write):
            await assert_has_the_usual_headers(api, answer)
        assert ready.json()["checks"] == {"database": "down", "redis": "ok"}
        reasons = [line["reason"] for line in lines if line["event"] == "request_not_served"]
        assert reasons == ["The database does not answer; try again later"] * 2


@pytest.mark.long
async def test_requests_get_503_and_readiness_fails_while_the_database_hangs(
    own_services: OwnServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerTimeoutConnection, "answer_s_max", 0.5)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.2)
    assert with_retries.__kwdefaults__ is not None
    monkeypatch.setitem(with_retries.__kwdefaults__, "retry_s_max", 0.5)
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


async def assert_has_the_usual_headers(api: Api, answer: httpx.Response) -> None:
    """It has a request id, and the headers of a successful answer."""
    usual = (await api.client.get("/health/live")).headers
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert usual.keys() >= {"cache-control", "content-type", "x-content-type-options"}
    for name in usual.keys() - {"date", "content-length", "x-request-id"}:
        assert answer.headers.get(name) == usual[name], name
