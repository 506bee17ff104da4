"""CORS: what pages of other origins may send to the API and read of its answers."""

from collections.abc import AsyncGenerator

import httpx
import pytest
import pytest_asyncio

from hydracore.auth import Principal
from tests.api_server import Api, every_operation
from tests.instance_fixtures import shared_api
from tests.services import Services

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


async def test_a_preflight_of_an_allowed_origin_lists_the_methods_and_headers_it_may_send(api: Api) -> None:
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
async def test_other_origins_are_refused_at_the_preflight_and_get_no_cors_headers(api: Api, origin: str) -> None:
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
async def test_an_allowed_origin_may_read_every_answer_including_errors(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.client.request(method, path, headers={"Origin": APP})

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == APP
    assert words(answer, "access-control-expose-headers") == {"link", "retry-after", "x-request-id"}


async def test_the_allowed_headers_are_exactly_those_that_operations_read(api: Api) -> None:
    read = {"authorization", "x-api-key", "x-user-id", "x-request-id", "content-type"}
    for op in every_operation():
        if op.signature.who is Principal:
            read |= {each.alias for each in op.signature.inputs if each.source == "header"}

    assert words(await preflight(api, APP), "access-control-allow-headers") == read


async def test_a_wildcard_origin_allows_every_origin(services: Services) -> None:
    async with shared_api(services, cors_origins=("*",)) as api:
        asked, got = await preflight(api, OTHER), await api.client.get("/health/live", headers={"Origin": OTHER})

    assert asked.headers["access-control-allow-origin"] == got.headers["access-control-allow-origin"] == "*"


async def test_by_default_no_cors_headers_are_sent(services: Services) -> None:
    async with shared_api(services) as api:
        asked, got = await preflight(api, APP), await api.client.get("/health/live", headers={"Origin": APP})

    for answer in (asked, got):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_an_options_request_that_is_no_preflight_is_answered_as_without_an_origin(api: Api) -> None:
    plain = await api.client.options("/v1/instances")
    others = [
        await api.client.options("/v1/instances", headers=headers)
        for headers in ({"Origin": APP}, {"Access-Control-Request-Method": "POST"})
    ]

    for other in others:
        assert (other.status_code, other.content) == (plain.status_code, plain.content)
