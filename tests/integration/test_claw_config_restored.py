"""After a restore, an agent runs the configuration of the control plane, even if its own has a higher version."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from hydracore.agent.state import STATE_DIR
from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, document, modelsim_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.waiting import PATIENCE_S, until

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def runs(claw: Claw, version: int) -> bool:
    return (await claw.status())["config_version"] == version


async def test_an_older_version_in_a_heartbeat_s_reply_is_fetched_and_replaces_the_newer_one(
    control_plane: FakeControlPlane, claw: Claw, tmp_path: Path
) -> None:
    kept = control_plane.runtime
    control_plane.configure(system_prompt="Lost words.")
    control_plane.configure(agent_name="Eva")
    await control_plane.until(lambda: any(beat["config_version"] == 5 for beat in control_plane.heartbeats))

    control_plane.config_version, control_plane.runtime = 4, kept
    await control_plane.until(lambda: any(beat["config_version"] == 4 for beat in control_plane.heartbeats[-1:]))

    assert kept["system_prompt"] in (await claw.chat("What are your instructions?"))["message"]
    stored = json.loads((tmp_path / "vps" / STATE_DIR / "config.json").read_bytes())
    assert (stored["config_version"], stored["runtime"]["system_prompt"]) == (4, kept["system_prompt"])


async def test_a_push_of_an_older_version_makes_the_agent_fetch_the_current_one(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    older = document(modelsim, system_prompt="Behind a restore.")
    control_plane.configure(system_prompt="Lost words.")
    await control_plane.until(lambda: any(beat["config_version"] == 4 for beat in control_plane.heartbeats))
    # No heartbeat's reply announces it.
    control_plane.script("heartbeat", *[503] * 1000)

    control_plane.config_version, control_plane.runtime = 2, older
    answer = await claw.push(2, older)

    assert answer.json() == {"config_version": 4}
    await until(lambda: runs(claw, 2))
    assert "Behind a restore." in (await claw.chat("What are your instructions?"))["message"]


async def test_a_push_during_a_fetch_of_an_older_version_is_not_undone_by_the_fetch(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    newest = document(modelsim, system_prompt="Newest words.")
    control_plane.configure(agent_name="Eva")
    await control_plane.until(lambda: any(beat["config_version"] == 4 for beat in control_plane.heartbeats))
    hold = control_plane.hold("config", "late")
    control_plane.config_version = 3
    async with asyncio.timeout(PATIENCE_S):
        await hold.reached.wait()

    control_plane.config_version, control_plane.runtime = 5, newest
    assert (await claw.push(5, newest)).json() == {"config_version": 5}
    control_plane.heartbeats.clear()
    hold.released.set()
    await control_plane.until(lambda: sum(call.endpoint == "config" for call in control_plane.calls) == 3)
    await control_plane.until(lambda: len(control_plane.heartbeats) >= 3)

    assert {beat["config_version"] for beat in control_plane.heartbeats} == {5}
    assert "Newest words." in (await claw.chat("What are your instructions?"))["message"]
