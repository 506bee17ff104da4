"""Parts of HydraCore as processes, forked from one process that has imported everything, so that they start fast.

They are real processes: pid, environment, signals, kill -9, exit code and output. The tests of `up`, of the demo and of the API as
a command use `python -m hydracore` instead, which proves that it starts in the same way.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Final, NamedTuple

#: Imported once for each process of pytest.
PRELOADED: Final = [
    "__main__",  # or each fork would import pytest's, which does not look where it is
    "tests.preloaded",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class _Given(NamedTuple):
    argv: list[str]
    cwd: Path
    env: dict[str, str]
    stdout: Path
    stderr: Path


class Forked:
    """A process that runs `python -m MODULE ARGUMENTS` from its beginning, from when this is made."""

    def __init__(
        self, module: str, *arguments: str, cwd: Path, env: dict[str, str], stdout: Path, stderr: Path
    ) -> None:
        """What it prints is appended to files."""
        given = _Given([module, *arguments], cwd, env, stdout, stderr)
        self._process = _context.Process(target=_become, args=(given,))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.exitcode is None

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is dead. A dead one is dead already."""
        self.signal(signal.SIGKILL)
        self._process.join()

    def wait(self, timeout_s: float) -> int:
        """Its exit code, once it has ended. Raises `TimeoutError`."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout_s} s")
        return self._process.exitcode


def _become(given: _Given) -> None:
    """Be as if started afresh."""
    for number, path in ((1, given.stdout), (2, given.stderr)):
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, number)
        os.close(log)
    os.chdir(given.cwd)
    os.environ.clear()
    os.environ.update(given.env)
    sys.argv = given.argv
    runpy.run_module(given.argv[0], run_name="__main__", alter_sys=True)
