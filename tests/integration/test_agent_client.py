"""The client to an agent, against peers that are slow, gone, redirecting or talk nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import uuid4

import msgspec
import pytest

from hydracore.agent.messages import AgentStatus, Versions
from hydracore.agent_answers import ANSWER_BYTES_MAX
from hydracore.agent_client import (
    AgentAddress,
    AgentBadAnswer,
    AgentClient,
    AgentClientError,
    AgentTimeout,
    AgentUnreachable,
)
from tests.agent_process import free_address
from tests.waiting import PATIENCE_S

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

TOKEN = "control-token"


@asynccontextmanager
async def peer(answer: bytes, *, host: str = "127.0.0.1", stays_open: bool = False) -> AsyncIterator[tuple[str, int]]:
    """A server that reads a request's head, sends `answer` and closes (or waits for the caller to)."""
    requests: list[bytes] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, EOFError, asyncio.CancelledError):  # The caller has closed the connection.
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            if stays_open:
                await reader.read()
        writer.close()
        with suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(connected, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving)
    for request in requests:
        assert b"authorization: bearer control-token" in request.lower()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture
async def agent_client() -> AsyncIterator[AgentClient]:
    async with AgentClient(timeout_s=PATIENCE_S) as client:
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
async def test_a_status_is_read(agent_client: AgentClient, host: str) -> None:
    async with peer(http("200 OK", msgspec.json.encode(STATUS)), host=host) as address:
        assert await agent_client.status(where(address)) == STATUS


async def test_an_unknown_field_of_a_newer_agent_is_ignored(agent_client: AgentClient) -> None:
    body = msgspec.json.encode({**msgspec.to_builtins(STATUS), "addition": 1})

    async with peer(http("200 OK", body)) as address:
        assert await agent_client.status(where(address)) == STATUS


async def test_an_agent_that_does_not_listen_is_unreachable(agent_client: AgentClient) -> None:
    with pytest.raises(AgentUnreachable):
        await agent_client.status(where(free_address()))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
async def test_a_broken_connection_is_reported_as_unreachable(agent_client: AgentClient, answer: bytes) -> None:
    async with peer(answer) as address:
        with pytest.raises(AgentUnreachable):
            await agent_client.drain(where(address))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
async def test_an_answer_that_never_begins_or_never_ends_is_a_timeout(answer: bytes) -> None:
    async with AgentClient(timeout_s=0.5) as agent_client, peer(answer, stays_open=True) as address:
        with pytest.raises(AgentTimeout):
            await agent_client.status(where(address))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http("401 Unauthorized", b"{}"), 401),
        (http("500 Oops", b"boom"), 500),
        (http("307 Elsewhere", b"", "Location: http://127.0.0.1:1/api/status"), 307),
        (http("200 OK", b"<html>"), 200),
        (http("200 OK", b"{}"), 200),
        (http("200 OK", b"\xff"), 200),
        (http("200 OK", msgspec.json.encode({**msgspec.to_builtins(STATUS), "uptime_seconds": 2**60})), 200),
        (http("200 OK", b"x" * (ANSWER_BYTES_MAX + 1)), 200),
        (http("500 Oops", b"x" * (ANSWER_BYTES_MAX + 1)), 500),
    ],
    ids=["unauthorized", "failed", "redirect", "html", "empty", "binary", "out_of_reason", "large", "failed_large"],
)
async def test_an_unexpected_answer_is_a_bad_answer_and_its_text_is_not_quoted(
    agent_client: AgentClient, answer: bytes, status: int
) -> None:
    async with peer(answer) as address:
        with pytest.raises(AgentBadAnswer) as caught:
            await agent_client.status(where(address))

    assert caught.value.status == status
    assert isinstance(caught.value, AgentClientError)
    assert not {"boom", "html", TOKEN} & set(str(caught.value).split())


# --- chats and documents ---------------------------------------------------------------------------------------------


def where(address: tuple[str, int]) -> AgentAddress:
    return AgentAddress(*address, TOKEN)


def chunked(*chunks: bytes, end: bool = True, content_type: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + (b"0\r\n\r\n" if end else b"")


async def test_a_chat_answer_is_returned_byte_for_byte(agent_client: AgentClient) -> None:
    body = b'{ "message" : "\\u00e4", "more": [1] }'

    async with peer(http("200 OK", body)) as address:
        answer = await agent_client.chat(where(address), {"message": "x"}, idempotency_key="k")

    assert bytes(answer) == body


@pytest.mark.parametrize("body", [b"[]", b"5", b"", b"{", b'{"message": "\xff"}', b"{} {}"])
async def test_a_chat_answer_that_is_not_one_json_object_is_a_bad_answer(
    agent_client: AgentClient, body: bytes
) -> None:
    async with peer(http("200 OK", body)) as address:
        with pytest.raises(AgentBadAnswer):
            await agent_client.chat(where(address), {})


async def test_the_agent_s_detail_is_kept_apart_from_the_error_message_and_truncated(agent_client: AgentClient) -> None:
    said = b'{"code": "budget_spent", "detail": "The budget\\n is spent%s"}' % (b"!" * 1000)

    async with peer(http("402 Payment Required", said)) as address:
        with pytest.raises(AgentBadAnswer) as caught:
            await agent_client.chat(where(address), {})

    assert (caught.value.status, caught.value.code) == (402, "budget_spent")
    assert caught.value.detail is not None
    assert caught.value.detail.startswith("The budget is spent!")
    assert len(caught.value.detail) < 501
    assert "budget" not in str(caught.value)


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream; Charset=UTF-8"])
async def test_a_stream_is_passed_on_unparsed(agent_client: AgentClient, content_type: str) -> None:
    async with peer(chunked(b"event: a\n", b"data: 1\n\n", content_type=content_type)) as address:
        stream = agent_client.chat_stream(where(address), {"message": "x"}, idempotency_key=None, idle_timeout_s=5)
        async with stream as chunks:
            content = b"".join([chunk async for chunk in chunks])

    assert content == b"event: a\ndata: 1\n\n"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (http("503 No", b'{"code": "draining", "detail": "no"}'), 503, "draining"),
        (http("503 No", b"Service Unavailable"), 503, None),
        (http("503 No", b"x" * (ANSWER_BYTES_MAX + 1)), 503, None),
        (http("200 OK", b"{}", "Content-Type: application/json"), 200, None),
    ],
)
async def test_a_refused_stream_raises_before_its_first_chunk(
    agent_client: AgentClient, answer: bytes, status: int, code: str | None
) -> None:
    async with peer(answer) as address:
        with pytest.raises(AgentBadAnswer) as caught:
            async with agent_client.chat_stream(where(address), {}, idle_timeout_s=5):
                pytest.fail("it was entered")

    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    ("answer", "stays_open", "error"),
    [
        (chunked(b"data: 1\n\n", end=False), False, AgentUnreachable),
        (chunked(b"data: 1\n\n", end=False), True, AgentTimeout),
    ],
    ids=["cut", "silent"],
)
async def test_a_stream_that_is_cut_or_falls_silent_raises_an_error(
    agent_client: AgentClient, answer: bytes, error: type[AgentClientError], *, stays_open: bool
) -> None:
    async with (
        peer(answer, stays_open=stays_open) as address,
        agent_client.chat_stream(where(address), {}, idle_timeout_s=0.5 if stays_open else PATIENCE_S) as chunks,
    ):
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(error):
            await anext(chunks)


async def test_a_stream_that_does_not_begin_is_a_timeout(agent_client: AgentClient) -> None:
    async with peer(b"", stays_open=True) as address:
        with pytest.raises(AgentTimeout):
            async with agent_client.chat_stream(where(address), {}, idle_timeout_s=0.2):
                pytest.fail("it was entered")


async def test_many_open_streams_do_not_block_another_request(agent_client: AgentClient) -> None:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(peer(chunked(b"data: 1\n\n", end=False), stays_open=True))
        for _ in range(250):
            await stack.enter_async_context(agent_client.chat_stream(where(address), {}, idle_timeout_s=20))
        async with peer(http("200 OK", msgspec.json.encode(STATUS))) as other:
            assert await agent_client.status(where(other)) == STATUS


async def test_a_call_can_have_a_timeout_of_its_own(agent_client: AgentClient) -> None:
    async with peer(b"", stays_open=True) as address:
        with pytest.raises(AgentTimeout, match=r"within 0\.1 s"):
            await agent_client.get_config(where(address), timeout_s=0.1)


async def test_proxy_settings_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async with AgentClient(timeout_s=5) as agent_client, peer(http("200 OK", b'{"active_connections": 3}')) as address:
        assert (await agent_client.drain(where(address))).active_connections == 3
