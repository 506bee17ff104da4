"""What can go wrong with the parts of one machine.

EmbeddedError
├── HomeInUse             another supervisor holds the home
├── HomeUnusable          the home cannot be made or written to
├── PortTaken             another program listens on the port that was asked for
│   └── AgentsPortTaken   another program listens on the port that the home's agents call
├── NoServiceAccount      there is no account that PostgreSQL would run as
├── PartFailed            a part ended, or did not become ready in time
├── DatabaseRefused       the database cannot be reached or migrated
├── RedisRefused          the user's own Redis does not answer
└── StoresRefused         the stores cannot be used, for one or both of these reasons
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class EmbeddedError(Exception):
    """Root of this package's errors. `str()` is one clear line for the user of the command."""


class HomeInUse(EmbeddedError):
    """Another supervisor holds this home."""

    def __init__(self, home: Path, pid: int | None) -> None:
        super().__init__(f"{home} is in use by another `hydracore up`" + (f" (pid {pid})" if pid else ""))
        self.home = home
        self.pid = pid


class HomeUnusable(EmbeddedError):
    """The home cannot be made or written to. `reason`: the operating system's."""

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(f"cannot use {home} as the home directory: {reason}")
        self.home = home
        self.reason = reason


class PortTaken(EmbeddedError):
    """Another program listens on the port that was asked for."""

    advice: ClassVar = "stop the program that uses it, or choose another port with --port, or with PORT= of make"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is already in use: {self.advice}")
        self.host = host
        self.port = port


class AgentsPortTaken(PortTaken):
    """Another program listens on the port that a home's agents call. Agents are given it at their boot, and keep it."""

    advice: ClassVar = "stop the program that uses it; the agents of this home need this port"


class NoServiceAccount(EmbeddedError):
    """PostgreSQL refuses to run as root and there is no unprivileged account to run it as."""

    def __init__(self) -> None:
        super().__init__(
            "PostgreSQL cannot run as root, and no unprivileged account could be set up for it: run as another user"
        )


class PartFailed(EmbeddedError):
    """A part ended, or did not become ready in time. `log_tail`: the end of what it wrote."""

    def __init__(self, name: str, reason: str, log: Path, log_tail: str) -> None:
        super().__init__(f"{name} {reason}; see {log}")
        self.add_note(log_tail)  # For a traceback: the log may be gone by the time somebody reads it.
        self.name = name
        self.reason = reason
        self.log = log
        self.log_tail = log_tail


class DatabaseRefused(EmbeddedError):
    """The database cannot be reached or migrated. `reason`: the driver's text, which never holds a password."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the database cannot be used: {' '.join(reason.split())}")
        self.reason = reason


class RedisRefused(EmbeddedError):
    """The user's own Redis does not answer. Parts would wait for it in silence, and no work would be ordered."""

    def __init__(self) -> None:
        super().__init__("no Valkey or Redis answers at HYDRACORE_REDIS_URL, or it rejects the password in that URL")


class StoresRefused(EmbeddedError):
    """The stores cannot be used. `refused`: the problems, each with one line as its text."""

    def __init__(self, refused: Sequence[DatabaseRefused | RedisRefused]) -> None:
        super().__init__("; ".join(map(str, refused)))
        self.refused = tuple(refused)
