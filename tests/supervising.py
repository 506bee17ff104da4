"""Tiny real processes for tests of the supervisor: parts that are one line of Python each."""

import os
import sys
from pathlib import Path

import psutil

from hydracore.embedded.files import tail
from hydracore.embedded.part import Part
from hydracore.embedded.supervisor import Supervisor

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
#: Needs no log.
QUIET = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
#: A main process with a child of its own; the child's pid goes to the log.
WITH_CHILD = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(child.pid, flush=True); time.sleep(600)"
)


def part(name: str, program: str, *, kind: str | None = None, log: Path | None = None) -> Part:
    """A Python one-liner; ready once it has written to `log`, if one is given."""

    async def ready() -> bool:
        return log is None or bool(tail(log))

    return Part(
        name=name, kind=kind or name, command=(sys.executable, "-c", program), environ=dict(os.environ), ready=ready
    )


def running(folder: Path):  # noqa: ANN201 - Supervisor.running's own type
    return Supervisor.running(home=folder, logs=folder)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
