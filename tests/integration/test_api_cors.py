"""What a browser is told about pages of other origins."""

from collections.abc import AsyncGenerator

import httpx
import pytest
import pytest_asyncio

from hydracore.auth import Principal
from tests.api_server import Api, every_operation
from tests.services import Services
from tests.use_fixtures import shared_api

APP, OTHER = "https://app.example", "https://other.example"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(services: Services) -> AsyncGenerator[Api]:
    async with shared_api(services, cors_origins=(APP, "http://localhost:3000")) as running:
        yield running


async def preflight(api: Api, origin: str, path: str = "/v1/instances", method: str = "POST") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return await api.client.options(path, headers=headers)


def words(answer: httpx.Response, header: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers[header].split(",")}


async def test_a_page_of_an_allowed_origin_learns_what_it_may_send(api: Api) -> None:
    answer = await preflight(api, APP)

    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == APP
    assert words(answer, "access-control-allow-methods") == {"get", "post", "patch", "delete"}
    assert words(answer, "access-control-allow-headers") >= {"authorization", "content-type"}
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer.headers
    assert words(answer, "vary") == {"origin"}
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize("origin", [OTHER, "https://app.example.evil.example", "https://app.example:444", "null"])
async def test_pages_of_other_origins_are_refused_before_they_send_anything(api: Api, origin: str) -> None:
    answer = await preflight(api, origin)
    simple = await api.client.get("/health/live", headers={"Origin": origin})

    assert (answer.status_code, answer.json()) == (403, {"detail": "This origin may not use the API"})
    for each in (answer, simple):
        assert not [name for name in each.headers if name.startswith("access-control-")]
        assert words(each, "vary") == {"origin"}
    assert simple.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/v1/instances", 401),
        ("GET", "/nothing", 404),
        ("PUT", "/v1/instances", 405),
    ],
)
async def test_an_allowed_page_may_read_every_answer_also_of_an_error(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.client.request(method, path, headers={"Origin": APP})

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == APP
    assert words(answer, "access-control-expose-headers") == {"link", "retry-after", "x-request-id"}


async def test_a_page_may_send_every_header_that_an_operation_reads(api: Api) -> None:
    read = {"authorization", "x-api-key", "x-user-id", "x-request-id", "content-type"}
    for op in every_operation():
        if op.signature.who is Principal:
            read |= {each.alias for each in op.signature.inputs if each.source == "header"}

    assert words(await preflight(api, APP), "access-control-allow-headers") == read


async def test_any_origin_means_any(services: Services) -> None:
    async with shared_api(services, cors_origins=("*",)) as api:
        asked, got = await preflight(api, OTHER), await api.client.get("/health/live", headers={"Origin": OTHER})

    assert asked.headers["access-control-allow-origin"] == got.headers["access-control-allow-origin"] == "*"


async def test_by_default_no_browser_is_told_anything(services: Services) -> None:
    async with shared_api(services) as api:
        asked, got = await preflight(api, APP), await api.client.get("/health/live", headers={"Origin": APP})

    for answer in (asked, got):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_what_is_no_preflight_is_served_as_without_an_origin(api: Api) -> None:
    plain = await api.client.options("/v1/instances")
    others = [
        await api.client.options("/v1/instances", headers=headers)
        for headers in ({"Origin": APP}, {"Access-Control-Request-Method": "POST"})
    ]

    for other in others:
        assert (other.status_code, other.content) == (plain.status_code, plain.content)
