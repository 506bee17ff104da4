"""The client to an agent, against peers that are slow, gone, redirecting or talk nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import pytest

from hydracore.agent.messages import AgentStatus, Versions
from hydracore.vps import ANSWER_MAX_BYTES, VpsBadAnswer, VpsClient, VpsError, VpsTimeout, VpsUnreachable
from tests.agent_process import free_address

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

TOKEN = "control-token"


@asynccontextmanager
async def peer(answer: bytes, *, host: str = "127.0.0.1", stays_open: bool = False) -> AsyncIterator[tuple[str, int]]:
    """A server that reads a request's head, sends `answer` and closes (or waits for the caller to)."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        try:
            await writer.drain()
            if stays_open:
                await reader.read()
        except ConnectionError:
            pass  # The caller had enough.
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]
    for request in requests:
        assert b"authorization: bearer control-token" in request.lower()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture
async def vps() -> AsyncIterator[VpsClient]:
    async with VpsClient(timeout_s=0.5) as client:
        yield client


STATUS = AgentStatus(
    instance_id=uuid4(),
    attempt=1,
    boot_id=uuid4(),
    stage="healthy",
    healthy=True,
    runtime="expressclaw",
    uptime_seconds=5,
    active_connections=0,
    versions=Versions(agent="1"),
    skills_loaded=(),
    config_version=1,
    error=None,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_status_is_read(vps: VpsClient, host: str) -> None:
    async with peer(http("200 OK", msgspec.json.encode(STATUS)), host=host) as address:
        assert await vps.status(*address, TOKEN) == STATUS


async def test_an_addition_of_a_newer_agent_does_no_harm(vps: VpsClient) -> None:
    body = msgspec.json.encode({**msgspec.to_builtins(STATUS), "addition": 1})

    async with peer(http("200 OK", body)) as address:
        assert await vps.status(*address, TOKEN) == STATUS


async def test_nobody_there_is_unreachable(vps: VpsClient) -> None:
    with pytest.raises(VpsUnreachable):
        await vps.status(*free_address(), TOKEN)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
async def test_a_connection_that_breaks_is_unreachable(vps: VpsClient, answer: bytes) -> None:
    async with peer(answer) as address:
        with pytest.raises(VpsUnreachable):
            await vps.drain(*address, TOKEN)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
async def test_an_answer_that_does_not_come_or_end_is_a_timeout(vps: VpsClient, answer: bytes) -> None:
    async with peer(answer, stays_open=True) as address:
        with pytest.raises(VpsTimeout):
            await vps.status(*address, TOKEN)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http("401 Unauthorized", b"{}"), 401),
        (http("500 Oops", b"boom"), 500),
        (http("307 Elsewhere", b"", "Location: http://127.0.0.1:1/api/status"), 307),
        (http("200 OK", b"<html>"), 200),
        (http("200 OK", b"{}"), 200),
        (http("200 OK", b"\xff"), 200),
        (http("200 OK", b"x" * (ANSWER_MAX_BYTES + 1)), 200),
    ],
    ids=["unauthorized", "failed", "redirect", "html", "empty", "binary", "too_large"],
)
async def test_any_other_answer_is_bad_and_is_not_quoted(vps: VpsClient, answer: bytes, status: int) -> None:
    async with peer(answer) as address:
        with pytest.raises(VpsBadAnswer) as caught:
            await vps.status(*address, TOKEN)

    assert caught.value.status == status
    assert isinstance(caught.value, VpsError)
    assert not {"boom", "html", TOKEN} & set(str(caught.value).split())


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with VpsClient(timeout_s=5) as vps, peer(http("200 OK", b'{"active_connections": 3}')) as address:
        assert (await vps.drain(*address, TOKEN)).active_connections == 3
