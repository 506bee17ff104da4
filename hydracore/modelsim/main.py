"""Runs the scripted model server: as a program until a signal ends it (`run`), or inside another one (`serve`)."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from hydracore.http_server import running_server, uvicorn_config
from hydracore.modelsim.app import ModelSim
from hydracore.modelsim.faults import Fault
from hydracore.modelsim.script import ScriptError, load_rules
from hydracore.signals import run_to_completion, stop_event

#: Seconds that open answers get at the end.
GRACE_S: Final = 1
BACKLOG: Final = 1024

#: An order that can be given at the start, so that the words of a stream can be seen to come one by one.
SLOW_COUNTING: Final = Fault(kind="slow", contains="ount to ", times=None, delay_s=0.04)


def run(*, host: str, port: int, home: Path, slow_counting: bool) -> int:
    """Serve until a signal comes. Returns the exit code. `home` may hold a script (see `script.load_rules`)."""

    async def until_signalled() -> None:
        ended = stop_event()
        async with serve(host=host, port=port, home=home, slow_counting=slow_counting) as url:
            sys.stderr.write(f"Scripted models (no real models) at {url}/v1\n")
            await ended.wait()

    try:
        run_to_completion(until_signalled())
    except (ScriptError, OSError) as error:
        sys.stderr.write(f"hydracore modelsim: {error}\n")
        return 2
    return 0


@contextlib.asynccontextmanager
async def serve(*, host: str, port: int, home: Path, slow_counting: bool = False) -> AsyncGenerator[str]:
    """Run a server in this event loop. Yields its URL, to which `/v1` or `/_sim` is added. Port 0 means any free port.

    Raises `ScriptError`, and `OSError` if the address is taken.
    """
    sim = ModelSim(load_rules(home))
    if slow_counting:
        sim.faults.add(SLOW_COUNTING)
    with socket.create_server((host, port), backlog=BACKLOG) as listener:
        # Connections inherit this option. asyncio sets it only on sockets whose protocol is TCP, and this
        # one's is 0. Without it, words of a stream would wait for the acknowledgement of those before them.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with running_server(uvicorn_config(sim, timeout_graceful_shutdown=GRACE_S), listener):
            try:
                yield f"http://{host}:{listener.getsockname()[1]}"
            finally:
                sim.faults.clear()
