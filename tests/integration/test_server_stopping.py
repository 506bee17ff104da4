"""The end of our HTTP servers: whoever has connected just before is not served on."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from hydracore.http_protocol import BoundedProtocol
from hydracore.http_server import EmbeddedServer, uvicorn_config
from tests.api_server import listen


async def test_a_connection_that_comes_with_the_end_of_the_server_is_closed_like_all_others() -> None:
    accepted, started = asyncio.Event(), asyncio.Event()

    class Telling(BoundedProtocol):
        """Tells when a connection is accepted, which is before it is made. In between, uvicorn knows nothing of it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            accepted.set()

    config = uvicorn_config(serve_nothing, http=Telling, timeout_graceful_shutdown=1)
    server, door = EmbeddedServer(config, on_started=started.set), listen("127.0.0.1")
    serving = asyncio.create_task(server.serve(sockets=[door]))
    await started.wait()
    with socket.create_connection(door.getsockname()):
        await accepted.wait()
        assert not server.server_state.connections

        await server.shutdown([door])

        assert not server.server_state.connections
    server.should_exit = True
    await serving


async def serve_nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("nothing is asked")
