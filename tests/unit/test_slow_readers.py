"""Responses that a client does not read, or reads slowly: whole ones and streams, on asyncio's event loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvloop
from uvicorn.server import ServerState

from hydracore import slow_readers
from hydracore.http_protocol import BoundedProtocol
from hydracore.http_server import uvicorn_config
from hydracore.slow_readers import READ_BYTES_MIN, unacknowledged_bytes
from tests.api_server import listen
from tests.waiting import PATIENCE_S, until

LARGE = b"x" * (8 * 2**20)
#: Less than a transport holds without saying that it is full, and more than the kernel takes of it.
SMALL = b"x" * (32 * 1024)

Scenario = Callable[[], Awaitable[None]]

on_each_loop = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def run(scenario: Scenario, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(bounded())


class Connection(NamedTuple):
    """`peer`: the other end, which reads when it is told to. `left`: set once an application has learnt that the peer is gone."""

    protocol: BoundedProtocol
    peer: socket.socket
    left: asyncio.Event

    async def read(self, count: int) -> int:
        """Read at least `count` bytes, or all up to the end; return how many."""
        loop, taken = asyncio.get_running_loop(), 0
        while taken < count and (piece := await loop.sock_recv(self.peer, 65536)):
            taken += len(piece)
        return taken

    @property
    def is_over(self) -> bool:
        return self.protocol not in self.protocol.connections


@asynccontextmanager
async def connected() -> AsyncGenerator[Connection]:
    """A TCP connection to an application that answers `/large`, `/small`, `/empty` or, piece by piece without end, `/stream`."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = {"/small": SMALL, "/empty": b""}.get(scope["path"], LARGE)
        streams = scope["path"] == "/stream"
        headers = [] if streams else [(b"content-length", b"%d" % len(body))]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.create_task(receive())
        while streams and not leaving.done():
            await send({"type": "http.response.body", "body": body[: 256 * 1024], "more_body": True})
        if not streams:
            await send({"type": "http.response.body", "body": body})
        await leaving
        left.set()

    config = uvicorn_config(app)
    config.load()
    loop, shared = asyncio.get_running_loop(), ServerState()
    made = list[BoundedProtocol]()

    def protocol() -> BoundedProtocol:
        made.append(BoundedProtocol(config, shared, {}))
        return made[-1]

    listener = listen("127.0.0.1")
    # Both buffers are small, so that it is the transport that holds what is not read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server = await loop.create_server(protocol, sock=listener)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    try:
        await loop.sock_connect(peer, listener.getsockname())
        await until(lambda: shared.connections)
        yield Connection(made[0], peer, left)
    finally:
        peer.close()
        for each in shared.connections:
            each.transport.abort()
        await until(lambda: not shared.connections)
        server.close()


def is_watched(protocol: BoundedProtocol) -> bool:
    return protocol.slow_reader_guard in slow_readers.SlowReaderGuard._watched


def get(path: str, version: str = "1.1", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: x", *headers, "", ""]).encode()


@on_each_loop
@pytest.mark.parametrize(
    "request_",
    [
        get("/large"),
        get("/large") + get("/large"),
        get("/large", "1.0"),
        get("/small", "1.0"),
        get("/small", "1.1", "Connection: close"),
        get("/small"),
        get("/stream"),
        get("/stream", "1.0"),
    ],
    ids=["whole", "two", "http_1_0", "small_1_0", "small_to_be_closed", "small_and_idle", "stream", "stream_1_0"],
)
def test_a_client_that_reads_nothing_is_disconnected(
    request_: bytes, loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_readers, "STALL_S", 0.05)

    async def scenario() -> None:
        async with connected() as connection:
            connection.protocol.timeout_keep_alive = 1
            await asyncio.get_running_loop().sock_sendall(connection.peer, request_)

            await until(lambda: connection.is_over)
            await connection.left.wait()

    run(scenario, loop)


@on_each_loop
def test_a_client_that_reads_slowly_stays_connected_until_it_stops_reading(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_readers, "STALL_S", 3600.0)

    async def scenario() -> None:
        async with connected() as connection:
            transport, watch = connection.protocol.transport, connection.protocol.slow_reader_guard
            await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large"))
            await until(lambda: connection.protocol.flow.write_paused)

            for _ in range(20):
                before = unacknowledged_bytes(transport)
                while unacknowledged_bytes(transport) > before - READ_BYTES_MIN:
                    await connection.read(1)
                watch.check()
                assert not transport.is_closing()
            watch.check()
            await until(lambda: connection.is_over)

    run(scenario, loop)


@on_each_loop
def test_unacknowledged_bytes_include_more_than_the_buffer_of_the_transport(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        async with connected() as connection:
            transport = connection.protocol.transport
            await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large"))
            await until(lambda: connection.protocol.flow.write_paused)

            assert unacknowledged_bytes(transport) > transport.get_write_buffer_size()

    run(scenario, loop)


@on_each_loop
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_is_delivered_whole_even_if_it_takes_longer_than_the_keep_alive_time(
    version: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario() -> None:
        async with connected() as connection:
            protocol = connection.protocol
            await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large", version))
            await until(lambda: protocol.flow.write_paused)
            protocol.timeout_keep_alive_handler()

            assert await connection.read(len(LARGE)) >= len(LARGE)
            if version == "1.1":
                await until(lambda: not protocol.flow.write_paused)
                await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large"))
                assert await connection.read(len(LARGE)) >= len(LARGE)
            assert not is_watched(connection.protocol) or version == "1.0"

    run(scenario, loop)


@on_each_loop
def test_a_client_that_stops_reading_the_last_response_of_a_connection_is_disconnected(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_readers, "STALL_S", 3600.0)

    async def scenario() -> None:
        async with connected() as connection:
            transport, watch = connection.protocol.transport, connection.protocol.slow_reader_guard
            # So that the application goes on while much is still unread.
            transport.set_write_buffer_limits(high=3 * len(LARGE) // 4, low=3 * len(LARGE) // 4)
            await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large", "1.0"))
            await until(lambda: connection.protocol.flow.write_paused)
            while connection.protocol.flow.write_paused:
                await connection.read(1)
                await asyncio.sleep(0)

            assert is_watched(connection.protocol)
            watch.check()
            assert not connection.is_over
            watch.check()
            await until(lambda: connection.is_over)

    run(scenario, loop)


async def request_large_response(connection: Connection) -> None:
    await asyncio.get_running_loop().sock_sendall(connection.peer, get("/large"))
    await until(lambda: connection.protocol.flow.write_paused)


@on_each_loop
@pytest.mark.parametrize("was_checked", [False, True], ids=["never_checked", "just_checked"])
def test_when_too_much_is_unread_the_client_that_reads_nothing_is_disconnected(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch, *, was_checked: bool
) -> None:
    monkeypatch.setattr(slow_readers, "UNREAD_BYTES_MAX", 5 * len(LARGE) // 2)

    async def scenario() -> None:
        async with connected() as reader, connected() as idle, connected() as last:
            await request_large_response(reader)
            taken = await reader.read(len(LARGE) // 8)
            if was_checked:
                reader.protocol.slow_reader_guard.check()
            await request_large_response(idle)
            await request_large_response(last)

            await until(lambda: idle.is_over)
            assert taken + await reader.read(len(LARGE) - taken) >= len(LARGE)
            assert await last.read(len(LARGE)) >= len(LARGE)

    run(scenario, loop)


@on_each_loop
def test_when_too_much_is_unread_the_client_that_asked_last_still_receives_its_response(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_readers, "UNREAD_BYTES_MAX", len(LARGE) // 2)

    async def scenario() -> None:
        async with connected() as idle, connected() as last:
            await request_large_response(idle)
            await request_large_response(last)

            await until(lambda: idle.is_over)
            assert await last.read(len(LARGE)) >= len(LARGE)

    run(scenario, loop)


@on_each_loop
def test_a_connection_that_was_reset_is_no_longer_watched(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with connected() as connection:
            protocol = connection.protocol
            await asyncio.get_running_loop().sock_sendall(connection.peer, get("/empty"))
            await until(lambda: protocol.cycle and protocol.cycle.response_started)
            # A reset, as of a peer that had something left to read.
            connection.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.peer.close()
            await until(lambda: connection.is_over)

            protocol.timeout_keep_alive_handler()
            await connection.left.wait()
            assert not is_watched(protocol)
            assert not slow_readers.SlowReaderGuard._watched

    run(scenario, loop)


@on_each_loop
def test_a_connection_reset_amid_a_response_and_half_a_next_head_is_forgotten_at_once(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        async with connected() as connection:
            protocol = connection.protocol
            half = get("/stream") + b"GET /next HTTP/1.1\r\nHost:"
            await asyncio.get_running_loop().sock_sendall(connection.peer, half)
            await until(lambda: is_watched(protocol) and protocol._head_timer is not None)
            connection.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.peer.close()
            await until(lambda: connection.is_over)

            assert not is_watched(protocol)
            # The timer would be set again for ever, as the response never ends.
            assert protocol._head_timer is None

    run(scenario, loop)
