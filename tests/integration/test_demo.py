"""`hydracore demo` as a stranger runs it: it shows the whole life of an instance and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from tests.services import open_folder
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
DEMO_S_MAX = 90


@pytest.fixture
def folder() -> Generator[Path]:
    """Where the demo makes its temporary home."""
    with open_folder() as path:
        yield path


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hydracore", "demo"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "HYDRACORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/not-this-one",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_over(folder: Path) -> list[str]:
    """Files below `folder`, and processes that work there."""
    living = (
        each for each in psutil.process_iter(["cmdline", "status"]) if each.info["status"] != psutil.STATUS_ZOMBIE
    )
    commands = (" ".join(each.info["cmdline"] or []) for each in living)
    return [*map(str, folder.iterdir()), *(command for command in commands if str(folder) in command)]


async def test_it_shows_everything_and_leaves_nothing(folder: Path) -> None:
    demo = start(folder)
    output, _ = demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode == 0, output
    steps = [
        "instance_requested",
        "server_intended",
        "server_created",
        "agent_enrolled",
        "instance_ready",
        "heartbeat at",
    ]
    steps += ["deletion_requested", "instance_deleted", "the provider has no server", "nothing is left running"]
    positions = [output.find(step) for step in steps]
    assert -1 not in positions, output
    assert positions == sorted(positions), output
    assert not left_over(folder)


async def test_ctrl_c_in_the_middle_leaves_nothing_either(folder: Path) -> None:
    demo = start(folder)
    # A server exists once its disk does: the middle of the story, with an agent about to run.
    await until(lambda: list(folder.glob("*/home/cloudsim/servers/*")), seconds_max=DEMO_S_MAX)

    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode == 130, output
    assert not left_over(folder)
