"""When agents report: a new one first after a random delay, a restarted one at once, and all at the interval they are given."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent import VERSION
from hydracore.agent import messages as m
from hydracore.agent.boot_file import BOOT_FILE, read_boot_file
from hydracore.agent.control_plane import ControlPlane
from hydracore.agent.credentials import Credentials
from hydracore.agent.heartbeats import send_heartbeats
from hydracore.agent.identity import load_identity
from hydracore.agent.state import StateDir
from tests.agent_fixtures import agent_fixture, control_plane_fixture
from tests.agent_process import AgentProcess
from tests.fake_control_plane import FakeControlPlane
from tests.waiting import until

__all__ = ["agent_fixture", "control_plane_fixture"]


class Heart:
    """The heartbeats of agents below one root. `draws` counts the random delays that were drawn."""

    def __init__(self, root: Path, control_plane: FakeControlPlane) -> None:
        self.draws = 0
        boot_file = root / BOOT_FILE
        boot_file.parent.mkdir(parents=True)
        boot_file.write_text(control_plane.boot_file())
        self._root = root
        self._fake = control_plane

    async def first_of_a_boot(self) -> None:
        state, boot_file, boot_id = StateDir(self._root), read_boot_file(self._root), uuid4()
        control_plane = ControlPlane(boot_file.control_plane_url)
        credentials = Credentials(
            boot_file=boot_file,
            boot_id=boot_id,
            identity=load_identity(state),
            state=state,
            control_plane=control_plane,
            on_renewed=lambda secrets: None,
        )
        await credentials.enrol()
        await credentials.load_or_fetch()
        await credentials.send_callback(
            m.Callback(boot_id=boot_id, seq=1, stage="secrets", level="info", message="Stored")
        )
        report = m.Heartbeat(
            boot_id=boot_id,
            uptime_seconds=1,
            active_connections=0,
            versions=m.Versions(agent=VERSION),
            skills_loaded=(),
            config_version=3,
            error=None,
        )
        beating = asyncio.create_task(
            send_heartbeats(
                credentials, control_plane, lambda: report, on_wanted_version=lambda version: None, rand=self._rand
            )
        )
        await self._fake.until(lambda: any(each["boot_id"] == str(boot_id) for each in self._fake.heartbeats))
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await control_plane.aclose()

    def _rand(self) -> float:
        self.draws += 1
        return 0.0


@pytest.fixture
def heart(tmp_path: Path, control_plane: FakeControlPlane) -> Heart:
    # Every delay but a drawn one, which is zero here, would be an hour.
    control_plane.heartbeat_interval_s = 3600
    return Heart(tmp_path, control_plane)


async def test_a_new_agent_first_reports_after_a_random_delay_and_a_restarted_one_at_once(heart: Heart) -> None:
    await heart.first_of_a_boot()
    drawn_by_a_new_agent = heart.draws
    await heart.first_of_a_boot()

    assert (drawn_by_a_new_agent, heart.draws) == (1, 1)


async def test_an_agent_that_died_before_its_secrets_were_acknowledged_counts_as_new(
    heart: Heart, control_plane: FakeControlPlane
) -> None:
    hold = control_plane.hold("callback", "before")
    dying = asyncio.create_task(heart.first_of_a_boot())
    await hold.reached.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    hold.released.set()

    await heart.first_of_a_boot()

    assert heart.draws == 1


def stored(agent: AgentProcess) -> bytes:
    secrets = agent.state / "secrets.json"
    return secrets.read_bytes() if secrets.exists() else b""


@pytest.mark.parametrize(
    ("of_the_secrets_s", "told_s"), [(3600, 0.05), (0.05, None)], ids=["changed since", "by an older control plane"]
)
async def test_a_restarted_agent_reports_at_the_interval_now_given_or_else_at_that_of_its_secrets(
    control_plane: FakeControlPlane, agent: AgentProcess, of_the_secrets_s: float, told_s: float | None
) -> None:
    control_plane.heartbeat_interval_s = of_the_secrets_s
    agent.start()
    # From then on it counts as a restarted one, which reports at once.
    await until(lambda: b'"acknowledged":true' in stored(agent))
    await agent.kill()
    control_plane.heartbeats.clear()

    control_plane.answered_interval_s = told_s
    agent.start()

    await control_plane.until(lambda: len(control_plane.heartbeats) >= 3)
