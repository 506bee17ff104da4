"""`hydracore up` as a process for tests, with what belongs to its home: fixtures, to be imported by name."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.forked import Forked
from tests.services import open_folder
from tests.waiting import until

REPOSITORY = Path(__file__).parents[1]
#: The promises of `up`, with room for a busy machine in the first.
READY_S_MAX = 40.0
STOP_S_MAX = 10.0


class Up:
    """One `hydracore up` on `home`."""

    def __init__(self, home: Path, port: int, *options: str, **settings: str) -> None:
        self.home = home
        self.dev_file = home / "dev.json"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hydracore", "up", "--home", str(home), "--port", str(port), *options],
            cwd=REPOSITORY,
            env=environ_with(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    async def ready(self) -> dict[str, Any]:
        await until(lambda: self.dev_file.exists() or self.process.poll() is not None, seconds_max=READY_S_MAX)
        assert self.process.poll() is None, self.process.communicate()
        return self.dev()

    def dev(self) -> dict[str, Any]:
        return json.loads(self.dev_file.read_text())

    def stop(self, number: int = signal.SIGINT) -> tuple[str, str]:
        """Send the signal; what it printed on both streams. Fails where the stop takes too long or is none."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        began_s = time.monotonic()
        # To its whole group, as a terminal sends Ctrl-C.
        os.killpg(self.process.pid, number)
        output = self.process.communicate(timeout=READY_S_MAX)
        assert time.monotonic() - began_s < STOP_S_MAX
        assert self.process.returncode == 0, output
        assert not [child for child in children if is_running(child)]
        assert not processes_of(self.home)
        assert not self.dev_file.exists()
        return output


@pytest.fixture(name="home")
def home_fixture() -> Generator[Path]:
    """A home that does not exist yet, in a directory that every account can pass through."""
    with open_folder() as folder:
        yield folder / "home"


@pytest.fixture(name="up")
def up_fixture(home: Path) -> Generator[Callable[..., Up]]:
    """Starts `up` on the test's home; what a failed test leaves running is stopped."""
    started: list[Up] = []

    def start(port: int, *options: str, **settings: str) -> Up:
        started.append(Up(home, port, *options, **settings))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()
        elif each.process.stdout and not each.process.stdout.closed:
            each.process.communicate()


async def run_refused_up(home: Path, port: int, **settings: str) -> tuple[int, str]:
    """The exit code of an `up` that cannot start, and its complaint."""
    output, complaint = home.with_name("up.out"), home.with_name("up.err")
    command = ("hydracore", "up", "--home", str(home), "--port", str(port))
    one = Forked(*command, cwd=REPOSITORY, env=environ_with(settings), stdout=output, stderr=complaint)
    try:
        return await asyncio.to_thread(one.wait, READY_S_MAX), complaint.read_text()
    finally:
        one.signal(signal.SIGTERM)
        one.wait(READY_S_MAX)


def environ_with(settings: dict[str, str]) -> dict[str, str]:
    """What a user has, with these settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HYDRACORE_")} | settings


def processes_of(home: Path) -> list[psutil.Process]:
    """Every living process whose command line names the home: the stores, cloudsim and its agents. `info` has its name."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if str(home) in " ".join(process.info["cmdline"] or ()) and is_running(process)
    ]


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
