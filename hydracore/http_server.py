"""uvicorn as all of our servers run it: with bounds, and without its own logging and headers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import Server

from hydracore.http_protocol import BoundedProtocol

#: How long an idle connection is kept: longer than by clients and proxies (60 s and less), so that they close it
#: first. A request that arrives while we close the connection is lost, and not every client may send it again.
KEEP_ALIVE_S: Final = 75

#: How often a server that ends checks for idle connections.
IDLE_CHECK_S: Final = 0.1


def uvicorn_config(app: Any, **overrides: Any) -> Config:
    """The configuration that serves the ASGI application `app`.

    `overrides`: arguments of `uvicorn.Config` that override ours.
    """
    defaults: dict[str, Any] = {
        "http": BoundedProtocol,
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # uvicorn would rewrite clients' addresses by what a proxy adds, but we do not use addresses.
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
    return Config(app, **defaults | overrides)


@contextlib.asynccontextmanager
async def running_server(config: Config, listener: socket.socket) -> AsyncGenerator[None]:
    """Serve the application of `config` on `listener` within the context, and then shut it down with its grace period.

    Raises the error that keeps the server from starting.
    """
    ready = asyncio.Event()
    server = EmbeddedServer(config, on_started=ready.set)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    # Also set where the server ends before it is ready: otherwise we would wait for ever.
    running.add_done_callback(lambda _: ready.set())
    try:
        await ready.wait()
        if running.done():
            running.result()
        yield
    finally:
        server.should_exit = True
        await running


class EmbeddedServer(Server):
    """A server in a program's own event loop: it leaves signals to the program, and calls `on_started` once it answers."""

    def __init__(self, config: Config, *, on_started: Callable[[], object] = lambda: None) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, and close idle connections until then.

        uvicorn closes them once. A connection that is just being accepted is not among them: it would be served for the
        whole grace period, which it would keep from ending, and even longer where the program goes on.
        """
        closing = asyncio.create_task(self._keep_closing_idle())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def _keep_closing_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            for connection in list(self.server_state.connections):
                connection.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
