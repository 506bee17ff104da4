"""Runs `hydracore WORDS` as a process and waits for it. The process is forked (see `tests.forked`), which starts it faster."""

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Self

from tests.cloudsim_fixtures import REPOSITORY
from tests.forked import Forked
from tests.waiting import PATIENCE_S


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


class Command:
    """A running command."""

    def __init__(self, process: Forked, stdout: Path, stderr: Path) -> None:
        self._process = process
        self._stdout = stdout
        self._stderr = stderr

    @classmethod
    @contextmanager
    def started(cls, *words: str, env: dict[str, str], cwd: Path = REPOSITORY) -> Generator[Self]:
        """It ends with the block, whatever comes of it."""
        with TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            process = Forked("hydracore", *words, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
            try:
                yield cls(process, stdout, stderr)
            finally:
                process.kill()

    def signal(self, number: signal.Signals) -> None:
        self._process.signal(number)

    def stderr_lines(self) -> list[str]:
        """The whole lines of its stderr so far."""
        said = self._stderr.read_text() if self._stderr.exists() else ""
        return said.splitlines()[: said.count("\n")]

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait until it ends: its status and output."""
        return Ended(self._process.wait(patience_s), self._stdout.read_text(), self._stderr.read_text())

    async def ended(self) -> Ended:
        """The same, with the loop going on."""
        return await asyncio.to_thread(self.wait)


def run_forked(*words: str, env: dict[str, str], cwd: Path = REPOSITORY, patience_s: float = PATIENCE_S) -> Ended:
    """From its start to its end."""
    with Command.started(*words, env=env, cwd=cwd) as command:
        return command.wait(patience_s)
