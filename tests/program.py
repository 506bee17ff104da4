"""A part of HydraCore as a process that a test kills and restarts."""

import signal
from pathlib import Path

from hydracore.settings import variable_name
from tests.cloudsim_fixtures import REPOSITORY
from tests.forked import Forked


class Program:
    """`hydracore NAME` as a process. `output` keeps what it has printed, also before a restart."""

    def __init__(self, name: str, *, environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._environ = environ
        self._process: Forked | None = None
        self._begin = 0

    def start(self, **settings: str) -> None:
        """Start it, with these settings changed until it ends."""
        assert not self.is_alive, "it runs"
        self._begin = len(self.output())
        env = self._environ | {variable_name(name): value for name, value in settings.items()}
        self._process = Forked("hydracore", self.name, cwd=REPOSITORY, env=env, stdout=self.log, stderr=self.log)

    def kill(self) -> None:
        """kill -9, and wait until it is dead. A dead one is dead already."""
        if self._process is not None:
            self._process.kill()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    def wait(self, timeout_s: float) -> int:
        """Its exit code, once it has ended. Raises `TimeoutError`."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def has_logged(self, word: str) -> bool:
        """Whether it has logged `word` since it was started. Fails if it has ended instead."""
        said = word in self.output()[self._begin :]
        assert said or self.is_alive, f"{self.name} ended:\n{self.output()[-3000:]}"
        return said
