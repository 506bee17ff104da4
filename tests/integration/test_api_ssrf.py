"""No request and no agent can choose where the API connects to, and what it asks for there."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

import hydracore.api
from tests import lifecycle
from tests.api_server import Api
from tests.callers import Callers, open_callers
from tests.instance_fixtures import RunningInstance
from tests.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: All that is ever asked of an agent, but for the id of a conversation at the end.
ASKED = {
    "/api/status",
    "/api/chat",
    "/api/config",
    "/api/conversations",
    "/api/conversations/c-1",
    "/api/updates/apply",
}

SOURCES = {path.name: path.read_text() for path in Path(hydracore.api.__path__[0]).rglob("*.py")}


class Trap:
    """A server that the API must never connect to."""

    def __init__(self) -> None:
        self.host = ""
        self.visits = 0

    async def visit(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def callers(services: Services) -> AsyncGenerator[Callers]:
    async with open_callers(services) as opened:
        yield opened


@pytest.fixture
def instance(callers: Callers) -> RunningInstance:
    """A running instance of ann's, whose agent has not been asked anything yet."""
    callers.instance.agent.calls.clear()
    return callers.instance


@pytest_asyncio.fixture(loop_scope="module")
async def trap() -> AsyncGenerator[Trap]:
    trap = Trap()
    async with await asyncio.start_server(trap.visit, "127.0.0.1", 0) as server:
        trap.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield trap


@asynccontextmanager
async def connected(api: Api) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def status_of(api: Api, target: str, *, host: str = "api", method: str = "GET", **headers: str) -> int:
    """The answer's status to a request with exactly this target: HTTP clients would normalize it."""
    token = {**api.token(), **headers}
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {token[name]}" for name in token), "", ""]
    async with connected(api) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        answer = await reader.readuntil(b"\r\n")
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "conversation_id",
    [
        "..",
        "%2e%2e",
        "..%2F..%2Fapi%2Fconfig",
        "%252e%252e%252fconfig",
        "c-1/../../config/../chat",
        "c-1%2F..%2F..%2Fconfig",
        "c-1%5C..%5Cconfig",
        "c-1%3Flimit=1",
        "c-1%23",
        "c-1;x",
        "c-1%00",
        "c-1%0D%0AHost:%20elsewhere",
        "%63-1%20",
        "@elsewhere",
        "//elsewhere/c-1",
        "http:%2F%2Felsewhere",
        "%EF%BD%83-1",
    ],
)
async def test_a_crafted_conversation_id_never_reaches_the_agent(
    instance: RunningInstance, conversation_id: str
) -> None:
    status = await status_of(instance.api, f"/v1/instances/{instance.instance_id}/conversations/{conversation_id}")

    assert status in {404, 422}
    assert instance.agent.calls == []


async def test_a_conversation_id_reaches_the_agent_as_it_was_validated(instance: RunningInstance) -> None:
    odd = "a:b_c-D9:"

    answers = [
        await status_of(instance.api, f"/v1/instances/{instance.instance_id}/conversations/{each}")
        for each in ("c-1", "%63%2D1", odd)
    ]

    assert answers == [200, 200, 404]
    assert [call.path for call in instance.agent.calls] == [
        "/api/conversations/c-1",
        "/api/conversations/c-1",
        "/api/conversations/a%3Ab_c-D9%3A",
    ]


@pytest.mark.parametrize("instance_id", ["..", "%2e%2e", "{id}%2F..%2F{id}", "{id}%00", "{id}@elsewhere", "127.0.0.1"])
async def test_a_crafted_instance_id_never_reaches_the_agent(instance: RunningInstance, instance_id: str) -> None:
    target = f"/v1/instances/{instance_id}/conversations/c-1".replace("{id}", str(instance.instance_id))

    assert await status_of(instance.api, target) in {404, 422}
    assert instance.agent.calls == []


async def test_no_address_in_a_request_makes_the_api_connect_to_it(instance: RunningInstance, trap: Trap) -> None:
    url = f"http://{trap.host}/"
    document = {"base_url": url, "proxy": url, "host": trap.host, "webhook": {"url": url}}
    requests: list[tuple[str, str, Any]] = [
        ("POST", "", {"region_id": "local", "tier_id": "starter", "manifest_id": url, "website_template_slug": url}),
        ("POST", "/config", {"recipe_id": url, "system_prompt": url, "workflow_slugs": [url], "agent_name": trap.host}),
        ("PATCH", "/platform-config", {"advanced": document, "channels": document, "integrations": [document, url]}),
        ("PATCH", "/model-policy", {"primary": url, "fallbacks": [url], "embedding_model": url}),
        ("POST", "/chat", {"message": url}),
        ("POST", "/updates/apply", {"force": True, "restart_agent": True}),
    ]
    forwarded = {"X-Forwarded-Host": trap.host, "X-Forwarded-For": trap.host, "Forwarded": f"host={trap.host}"}

    for method, path, body in requests:
        target = f"/v1/instances/{instance.instance_id}{path}" if path else "/v1/instances"
        headers = {**instance.api.token(), **forwarded, "Referer": url, "Origin": url}
        answer = await instance.api.client.request(method, target, json=body, headers=headers)
        assert answer.is_success, answer.text
    for path in ("config", "runtime", "conversations", "conversations/c-1"):
        target = f"{url}v1/instances/{instance.instance_id}/{path}"
        assert await status_of(instance.api, target, host=trap.host) == 200
    beat = {"boot_id": str(lifecycle.BOOT), "uptime_seconds": 1, "active_connections": 0, "skills_loaded": [url]}
    told = {"versions": {"agent": trap.host}, "config_version": 1, "error": {"code": "x", "message": url}}
    assert (await instance.agent_post("heartbeat", {**beat, **told, "host": trap.host, "vpn_ip": trap.host})).is_success

    assert trap.visits == 0
    assert {call.path for call in instance.agent.calls} == ASKED
    assert trap.host not in {call.headers["host"] for call in instance.agent.calls}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/conversations"), ("GET", "/conversations/c-1"), ("POST", "/chat")]
)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_of_an_agent_are_not_followed(
    instance: RunningInstance, trap: Trap, method: str, path: str, status: int
) -> None:
    instance.agent.script(f"/api{path}", status, {"detail": "over there"}, location=f"http://{trap.host}/")

    answer = await instance.ask(method, path, {"message": "Hello"} if method == "POST" else None)

    assert (answer.status_code, trap.visits) == (502, 0)
    assert trap.host not in answer.text


async def test_the_api_never_gives_the_command_that_sets_an_instance_s_address() -> None:
    """Addresses come into the log by one command, which workers give once they have taken the address from our own."""
    assert [name for name, text in SOURCES.items() if "PlanServer" in text] == []
