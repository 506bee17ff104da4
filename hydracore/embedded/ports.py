"""Loopback ports that stay the same across restarts.

Ports are drawn below the kernel's ephemeral range (32768 and up on Linux, 49152 on macOS). A client
that keeps connecting to a port of that range while its server restarts may be given the same port
as its source port. It is connected to itself then, and the server can never listen there again.
"""

import secrets
import socket
from pathlib import Path
from typing import Annotated, Final

import msgspec
import psutil

from hydracore.embedded.errors import AgentsPortTaken, EmbeddedError
from hydracore.embedded.files import write_json

LOOPBACK: Final = "127.0.0.1"
PORT_FIRST: Final = 20_000
PORT_LAST: Final = 29_999
#: The name of the port that agents call. It never changes.
AGENTS_PORT: Final = "agents"
#: The most ports that are tried. If none of them is free, the range counts as full.
TRIES_MAX: Final = 200

_Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class Ports:
    """The ports of one home, by name of the part, kept in `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._ports = msgspec.json.decode(path.read_bytes(), type=dict[str, _Port])
        except (FileNotFoundError, ValueError):  # No JSON, no UTF-8 in it, or no ports.
            self._ports = {}
        self._claimed: set[str] = set()
        self._drawn: set[str] = set()

    def claim(self, name: str) -> int:
        """The port that `name` had last time if it is free, otherwise a new one, which is saved."""
        port = self._ports.get(name)
        others = {taken for owner, taken in self._ports.items() if owner != name}
        if port is None or port in others or not is_free(port):
            port = free_port(avoid=others)
            self._ports[name] = port
            self._drawn.add(name)
            write_json(self._path, self._ports)
        self._claimed.add(name)
        return port

    def claim_for_agents(self) -> int:
        """The port that agents call. It never changes once it is drawn, because agents have stored it.

        Raises `AgentsPortTaken` where another program listens on it.
        """
        known = self._ports.get(AGENTS_PORT)
        if known is not None and not is_free(known):
            raise AgentsPortTaken(LOOPBACK, known)
        return self.claim(AGENTS_PORT)

    def taken_since(self) -> list[int]:
        """The claimed ports that another program has taken before we listened there. Call it with our parts stopped.

        If there are any, all ports that were newly drawn are forgotten: no agent has been given one, and a home that
        has drawn one of them at the same moment may have drawn the others, too.
        """
        taken = [self._ports[name] for name in sorted(self._claimed) if not is_free(self._ports[name])]
        if taken and self._drawn:
            self._ports = {name: port for name, port in self._ports.items() if name not in self._drawn}
            write_json(self._path, self._ports)
        return taken


def free_port(*, avoid: set[int] | None = None) -> int:
    """A loopback port that is free. Raises `EmbeddedError` where none was found."""
    for _ in range(TRIES_MAX):
        port = PORT_FIRST + secrets.randbelow(PORT_LAST - PORT_FIRST + 1)
        if port not in (avoid or ()) and is_free(port):
            return port
    raise EmbeddedError(f"no free port between {PORT_FIRST} and {PORT_LAST} on {LOOPBACK}")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `port`.

    Closing connections (TIME_WAIT) do not prevent it, with `SO_REUSEADDR`.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listens(pid: int, port: int) -> bool:
    """Whether the process `pid`, which has to be of our own account, listens on `port`."""
    try:
        connections = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections)
