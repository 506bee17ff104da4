"""Serves the agent's API on its address: waits until that exists, moves when told, stops gracefully."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NoReturn

import structlog

from hydracore.agent.api import AgentApi
from hydracore.agent.backoff import Backoff
from hydracore.agent.messages import Level, Listen
from hydracore.http_server import EmbeddedServer, uvicorn_config
from hydracore.waiting import run_until

_log = structlog.get_logger(__name__)

BIND_BASE_S = 0.1
BIND_CAP_S = 5.0

#: The most connections at once; more are answered with 503. The only callers are the control plane's processes.
CONNECTIONS_MAX = 512

#: Seconds that open requests get to finish when the agent stops.
GRACE_S = 3


class AgentServer:
    """Call `listen_on`, then run `run` as a task. `report` is called once if an address cannot be bound yet."""

    def __init__(self, api: AgentApi, *, report: Callable[[Level, str], object]) -> None:
        self._api = api
        self._listen: Listen | None = None
        self._report = report
        self._address_changed = asyncio.Event()
        self._listening = asyncio.Event()

    def listen_on(self, listen: Listen) -> None:
        """Listen at this address from now on, and no longer at the one before."""
        if listen != self._listen:
            self._listen = listen
            self._address_changed.set()

    async def wait_until_listening(self) -> None:
        """Wait until requests are answered."""
        await self._listening.wait()

    @property
    def is_listening(self) -> bool:
        return self._listening.is_set()

    async def run(self) -> NoReturn:
        while True:
            self._address_changed.clear()
            assert self._listen is not None, "the server was not told where to listen"
            moved = await run_until(self._address_changed, self._serve(self._listen))
            assert moved, "uvicorn ended though nobody asked it to"

    async def _serve(self, listen: Listen) -> None:
        bound = await self._bind(listen)
        config = uvicorn_config(self._api, limit_concurrency=CONNECTIONS_MAX, timeout_graceful_shutdown=GRACE_S)
        server = EmbeddedServer(config, on_started=lambda: self._note_listening(listen))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            # Cancelling uvicorn itself would skip its orderly end, so it is asked to stop instead.
            await asyncio.shield(serving)
        finally:
            self._listening.clear()
            server.should_exit = True
            await serving
            bound.close()

    def _note_listening(self, listen: Listen) -> None:
        self._listening.set()
        _log.info("listening", host=listen.host, port=listen.port)

    async def _bind(self, listen: Listen) -> socket.socket:
        """Bind as soon as possible: the address comes with the VPN interface, and an ending agent may hold the port."""
        backoff = Backoff(base_s=BIND_BASE_S, cap_s=BIND_CAP_S)
        is_reported = False
        while True:
            try:
                return _listening_socket(listen)
            except OSError as error:
                wait_s = backoff.next_wait_s()
                _log.warning("cannot_listen", host=listen.host, port=listen.port, reason=error.strerror, wait_s=wait_s)
                if not is_reported:
                    is_reported = True
                    self._report("warning", f"Cannot listen on {listen.host} port {listen.port} yet: {error.strerror}")
                await asyncio.sleep(wait_s)


def _listening_socket(listen: Listen) -> socket.socket:
    """Raises `OSError`, also for an invalid address."""
    flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE  # never a name lookup, which would block
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=flags
        )[0]
    except UnicodeError:
        # Python refuses a host that cannot even be a name (with a label that is empty or too long) by itself.
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    bound = socket.socket(family, kind, protocol)
    try:
        # After kill -9 the old agent's connections linger in TIME_WAIT and would keep the port from the next one.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError:
        bound.close()
        raise
    return bound
