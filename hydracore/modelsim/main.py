"""Runs the scripted model server: as a program until a signal ends it (`run`), or inside another one (`serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

from uvicorn.config import Config
from uvicorn.server import Server

from hydracore.modelsim.app import ModelSim
from hydracore.modelsim.script import ScriptError, load_rules

#: Longer than agents keep an idle connection, so that it is they who close it.
KEEP_ALIVE_S: Final = 75
#: What open answers get at the end.
GRACE_S: Final = 1
BACKLOG: Final = 1024


def run(*, host: str, port: int, home: Path) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `home` may hold a script (see `script.load_rules`)."""

    async def until_signalled() -> None:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        async with serve(host=host, port=port, home=home) as url:
            sys.stderr.write(f"Scripted models (no real one among them) at {url}/v1\n")
            await ended.wait()

    try:
        asyncio.run(until_signalled())
    except (ScriptError, OSError) as error:
        sys.stderr.write(f"hydracore modelsim: {error}\n")
        return 2
    return 0


@contextlib.asynccontextmanager
async def serve(*, host: str, port: int, home: Path) -> AsyncGenerator[str]:
    """A server within this event loop; yields its URL, to which `/v1` or `/_sim` is added. Port 0 means any.

    Raises `ScriptError`, and OSError when the address is taken.
    """
    sim = ModelSim(load_rules(home))
    with socket.create_server((host, port), backlog=BACKLOG) as listener:
        # Connections inherit it. asyncio sets it only where a socket says that it is TCP's, which this one does not: a stream's
        # words would wait for the acknowledgement of those before them.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _EmbeddedServer(sim)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await server.ready.wait()
        try:
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            sim.faults.clear()
            server.should_exit = True
            await task


class _EmbeddedServer(Server):
    """Leaves signals to the program that hosts it, and tells when it is ready."""

    def __init__(self, app: ModelSim) -> None:
        config = Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
