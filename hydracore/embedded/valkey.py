"""The embedded Valkey. It carries wake-ups only, so nothing is written to disk.

It listens on loopback and has a password.
"""

import os
from pathlib import Path
from typing import Final

import redis.asyncio
import redis.exceptions

from hydracore.embedded.binaries import valkey_server
from hydracore.embedded.part import Part
from hydracore.embedded.ports import LOOPBACK
from hydracore.files import write_atomic

ANSWER_S_MAX: Final = 2


class Valkey:
    """One server without persistence.

    Its configuration is a file: in a command line, everybody could read its password.
    """

    def __init__(self, *, base: Path, password: str, port: int, databases: int = 16) -> None:
        base.mkdir(mode=0o700, exist_ok=True)
        self.port = port
        self._base = base
        self._password = password
        self._databases = databases

    def url(self, database: int = 0) -> str:
        assert 0 <= database < self._databases
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def part(self, name: str = "valkey") -> Part:
        return Part(
            name=name,
            kind="valkey",
            command=(str(valkey_server()), str(self._config)),
            environ={"LC_ALL": "C", "PATH": os.defpath},
            cwd=str(self._base),
            prepare=self.prepare,
            ready=self.answers,
        )

    async def prepare(self) -> None:
        """Write the configuration."""
        lines = (
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self._password}",
            f"databases {self._databases}",
            # The directory that it is started in. A path could have characters that mean something else in this file.
            "dir ./",
            'save ""',
            "appendonly no",
            "daemonize no",
            # A title would overwrite the environment, and with it the mark by which a supervisor finds leftovers.
            "set-proc-title no",
        )
        write_atomic(self._config, "\n".join(lines).encode() + b"\n", durable=False)

    async def answers(self) -> bool:
        return await answers(self.url())

    @property
    def _config(self) -> Path:
        return self._base / "valkey.conf"


async def answers(url: str) -> bool:
    """Whether the server at `url` takes the password in it and answers, within `ANSWER_S_MAX`."""
    client = redis.asyncio.from_url(url, socket_timeout=ANSWER_S_MAX, socket_connect_timeout=ANSWER_S_MAX)
    try:
        return bool(await client.ping())  # pyright: ignore[reportUnknownMemberType] - redis-py's **kwargs
    except (redis.exceptions.RedisError, OSError):
        return False
    finally:
        await client.aclose()
