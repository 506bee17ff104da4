"""How the HTTP protocol handles requests, however their bytes are split."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.server import ServerState

from hydracore.http_protocol import HEAD_BYTES_MAX, BoundedProtocol
from hydracore.http_server import uvicorn_config
from tests.memory import allocating_less_than
from tests.waiting import PATIENCE_S

#: A body that looks like a head.
BODY = b"A\r\nUpgrade:   h2c\r\n\r\nB: C\r\nUpgrade: h2c\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and the body."""
    content = scope["path"].encode() + b" "
    while True:
        message = await receive()
        content += message.get("body", b"")
        if not message.get("more_body", False):
            break
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """Answers in two pieces, without saying how long they are together."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece, more in ((b"one ", True), (b"", True), (scope["http_version"].encode(), False)):
        await send({"type": "http.response.body", "body": piece, "more_body": more})


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        return int(head.split()[1]), await reader.readexactly(int(length[16:]))


@asynccontextmanager
async def connected(app: Any = echo) -> AsyncGenerator[tuple[BoundedProtocol, asyncio.StreamReader]]:
    """A protocol to feed with bytes, and a reader of what it sends back."""
    config = uvicorn_config(app)
    config.load()
    ours, theirs = socket.socketpair()
    protocol = BoundedProtocol(config, ServerState(), {})
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    yield protocol, reader
    transport.close()
    writer.close()


def request(*headers: bytes) -> bytes:
    return b"\r\n".join([b"POST /first HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(BODY), b"", BODY])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAEAAEAAAAIA", b"Upgrade: h2c"],
        [b"UPGRADE:H2C\t", b"Connection: upgrade"],
        [b"Connection: upgrade", b"Upgrade: h2c, tls/1.2", b"Upgrade: websocket"],
    ],
    ids=["none", "as Java's client", "in capitals", "several"],
)
async def test_a_request_to_upgrade_the_protocol_is_answered_as_usual_wherever_it_is_split(
    headers: list[bytes],
) -> None:
    whole = request(*headers)

    for at in range(len(whole)):
        async with connected() as (protocol, reader):
            for piece in (whole[:at], whole[at:]):
                protocol.data_received(piece)
            first = await answer(reader)
            protocol.data_received(NEXT)
            assert [first, await answer(reader)] == [(200, b"/first " + BODY), (200, b"/next ")], at


@pytest.mark.parametrize("first", [NEXT, NEXT + NEXT], ids=["one", "two"])
@pytest.mark.parametrize(
    "behind",
    [
        request(b"Connection: upgrade", b"Upgrade: h2c"),
        b"no HTTP\r\n\r\n",
        b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"GET /first HTTP/1.1\r\nA: x",
    ],
    ids=["an upgrade with a body", "no head", "no body", "too long"],
)
async def test_a_request_is_answered_even_if_an_upgrade_or_an_invalid_request_follows_it(
    first: bytes, behind: bytes
) -> None:
    more = b"x" * (HEAD_BYTES_MAX + 1)
    for pieces in ([first + behind, more], [first + behind[:20], behind[20:], more]):
        async with connected() as (protocol, reader), asyncio.timeout(PATIENCE_S):
            for piece in pieces:
                protocol.data_received(piece)

            for _ in range(len(first) // len(NEXT)):
                assert await answer(reader) == (200, b"/next ")
            assert await reader.read() == b""


async def test_refused_bytes_that_follow_a_request_are_not_kept_in_memory() -> None:
    async with connected() as (protocol, reader):
        with allocating_less_than(8 * HEAD_BYTES_MAX):
            protocol.data_received(NEXT + b"GET /first HTTP/1.1\r\nA: x")
            for _ in range(100):
                protocol.data_received(b"x" * HEAD_BYTES_MAX)

        assert await answer(reader) == (200, b"/next ")


@pytest.mark.parametrize("headers", [b"", b"Connection: keep-alive\r\n"], ids=["without_headers", "keep_alive"])
async def test_an_http_1_0_response_without_a_length_ends_with_the_connection(headers: bytes) -> None:
    async with connected(stream) as (protocol, reader), asyncio.timeout(PATIENCE_S):
        protocol.data_received(b"GET / HTTP/1.0\r\n" + headers + b"\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")

    assert body == b"one 1.0"
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head


async def test_an_http_1_0_response_keeps_its_length_and_a_response_to_head_has_no_body() -> None:
    async with connected() as (protocol, reader), asyncio.timeout(PATIENCE_S):
        protocol.data_received(b"GET /a HTTP/1.0\r\n\r\n")
        assert await answer(reader) == (200, b"/a ")
        assert await reader.read() == b""
    async with connected(stream) as (protocol, reader), asyncio.timeout(PATIENCE_S):
        protocol.data_received(b"HEAD /a HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\n")


async def test_an_http_1_1_response_without_a_length_is_chunked_and_the_connection_stays_open() -> None:
    async with connected(stream) as (protocol, reader), asyncio.timeout(PATIENCE_S):
        for _ in range(2):
            protocol.data_received(NEXT)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"transfer-encoding: chunked" in head
            assert await reader.readuntil(b"0\r\n\r\n") == b"4\r\none \r\n3\r\n1.1\r\n0\r\n\r\n"
