"""Agents as real processes for tests, each below a root of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from hydracore.agent.boot_file import BOOT_FILE
from hydracore.agent.state import STATE_DIR
from hydracore.embedded.ports import free_port
from tests.forked import Forked
from tests.waiting import PATIENCE_S, until

REPOSITORY = Path(__file__).parent.parent


def free_address(host: str = "127.0.0.1") -> tuple[str, int]:
    """`host` and a port that was free a moment ago: none that the kernel gives to clients, as one that keeps trying to connect to it
    might get it itself."""
    return host, free_port()


class AgentProcess:
    """`python -m hydracore.agent` for one root; may be started again after it ended. Its output is kept on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stdout = root / "agent.stdout"
        self.stderr = root / "agent.stderr"
        self._process: Forked | None = None

    @property
    def state(self) -> Path:
        return self.root / STATE_DIR

    def write_boot_file(self, content: str) -> None:
        path = self.root / BOOT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def start(self) -> None:
        assert not self.is_alive, "it runs"
        command = ("hydracore.agent", "--root", str(self.root))
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self._process = Forked(*command, cwd=self.root, env=env, stdout=self.stdout, stderr=self.stderr)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    async def kill(self) -> None:
        """kill -9, and wait until it is dead."""
        self.signal(signal.SIGKILL)
        await self.exit_code()

    async def exit_code(self, *, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, timeout_s)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive

    def output(self) -> str:
        return "".join(path.read_text() for path in (self.stdout, self.stderr) if path.exists())

    def log(self) -> list[dict[str, Any]]:
        """Its log so far; every line of stdout must be a JSON object."""
        return [json.loads(line) for line in self.stdout.read_text().splitlines()]

    async def until_logged(self, event: str, *, times: int = 1) -> None:
        await until(lambda: self.output().count(f'"event":"{event}"') >= times)

    def stop_for_good(self) -> None:
        if self._process is not None:
            self._process.kill()
