"""What the protocol makes of requests, however their bytes are cut into pieces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.server import ServerState

from hydracore.http_protocol import BoundedProtocol
from hydracore.http_server import configuration
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


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        return int(head.split()[1]), await reader.readexactly(int(length[16:]))


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[BoundedProtocol, asyncio.StreamReader]]:
    """A connection, to be told what is read from it, and what comes back."""
    config = configuration(echo)
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
async def test_a_wish_for_another_protocol_changes_nothing_wherever_a_request_is_cut(headers: list[bytes]) -> None:
    whole = request(*headers)

    for at in range(len(whole)):
        async with connected() as (protocol, reader):
            for piece in (whole[:at], whole[at:]):
                protocol.data_received(piece)
            first = await answer(reader)
            protocol.data_received(NEXT)
            assert [first, await answer(reader)] == [(200, b"/first " + BODY), (200, b"/next ")], at


async def test_such_a_wish_behind_another_request_is_refused() -> None:
    async with connected() as (protocol, reader):
        protocol.data_received(NEXT + request(b"Connection: upgrade", b"Upgrade: h2c"))
        async with asyncio.timeout(PATIENCE_S):
            told = await reader.read()

    assert b"/first" not in told
