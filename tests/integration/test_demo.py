"""`hydracore demo` as a stranger runs it: it shows the whole life of an instance and leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from hydracore.cli.demo import HOME_PREFIX
from hydracore.embedded.temporary_home import temporary_home
from tests.modelsim_fixtures import running_modelsim
from tests.services import open_folder
from tests.waiting import until

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
DEMO_S_MAX = 90


@pytest.fixture
def folder() -> Generator[Path]:
    """Where the demo makes its temporary home."""
    with open_folder() as path:
        yield path


def start(folder: Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hydracore", "demo"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "HYDRACORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/not-this-one",
            "HYDRACORE_REDIS_URL": "redis://127.0.0.1:1/0",
            **settings,
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


def at_work(folder: Path) -> list[Path]:
    """The homes in which all processes serve."""
    return [file.parent for file in folder.glob("*/home/dev.json")]


#: What the output must contain, in this order.
STEPS = (
    "ignored: HYDRACORE_DATABASE_URL and HYDRACORE_REDIS_URL; the demo always starts its own stores\n",
    "instance_requested",
    "server_intended",
    "server_created",
    "agent_enrolled",
    "instance_ready",
    "heartbeat at",
    "a script answers (`hydracore modelsim`), no model",
    "[scripted] You said: My dog is called Bo.",
    "[scripted] 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20\n",
    "first token after",
    "The agent runs with it",
    "[scripted] Ahoy! Before that you said: My dog is called Bo.",
    "3 calls",
    "the old key is refused with 401",
    "the agent got a new one",
    "[scripted] Ahoy! You said: Are you still there?",
    "deletion_requested",
    "instance_deleted",
    "the provider has no server",
    "nothing is left running",
)


def positions_of(steps: tuple[str, ...], output: str) -> list[int]:
    """Where each first occurs in the output."""
    positions = [output.find(step) for step in steps]
    assert -1 not in positions, (steps[positions.index(-1)], output)
    return positions


async def test_a_demo_shows_every_step_and_leaves_nothing_behind(folder: Path) -> None:
    demo = start(folder)
    output, _ = demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode == 0, output
    assert positions_of(STEPS, output) == sorted(positions_of(STEPS, output)), output
    assert not left_over(folder)


async def test_the_next_demo_removes_what_a_killed_demo_left_and_leaves_a_running_one_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    demo = start(folder)
    await until(lambda: at_work(folder), seconds_max=DEMO_S_MAX)

    with temporary_home(HOME_PREFIX):
        pass
    assert at_work(folder), "the first has not ended yet"
    demo.kill()
    await asyncio.to_thread(demo.communicate)
    assert len(left_over(folder)) > 1
    with temporary_home(HOME_PREFIX) as home:
        assert left_over(folder) == [str(home.path.parent)]

    assert not left_over(folder)


async def test_ctrl_c_during_a_chat_with_an_external_model_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    async with running_modelsim(tmp_path) as models:
        await models.fault("hang")
        demo = start(folder, HYDRACORE_MODEL_BASE_URL=models.base_url, HYDRACORE_MODEL_API_KEY="sk-own")
        # The middle of the story: a whole installation, and an agent that waits for its model.
        await until(models.requests, seconds_max=DEMO_S_MAX)

        demo.send_signal(signal.SIGINT)
        output, _ = await asyncio.to_thread(demo.communicate, timeout=DEMO_S_MAX)

    assert demo.returncode == 130, output
    assert "the endpoint at HYDRACORE_MODEL_BASE_URL" in output
    assert not left_over(folder)
