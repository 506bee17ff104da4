"""The end of our HTTP servers: a client that connected just before is not kept."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from hydracore.http_protocol import BoundedProtocol
from hydracore.http_server import EmbeddedServer, uvicorn_config
from tests.api_server import listen


async def test_a_connection_that_is_accepted_during_the_shutdown_is_closed() -> None:
    accepted, started = asyncio.Event(), asyncio.Event()

    class Signaling(BoundedProtocol):
        """Signals when a connection is accepted, which is before it is made. In between, uvicorn does not know of it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            accepted.set()

    config = uvicorn_config(serve_nothing, http=Signaling, timeout_graceful_shutdown=1)
    server, listener = EmbeddedServer(config, on_started=started.set), listen("127.0.0.1")
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await started.wait()
    with socket.create_connection(listener.getsockname()):
        await accepted.wait()
        assert not server.server_state.connections

        await server.shutdown([listener])

        assert not server.server_state.connections
    server.should_exit = True
    await serving


async def serve_nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("nothing is asked")
