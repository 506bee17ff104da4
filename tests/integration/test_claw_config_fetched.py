"""The agent fetches a configuration that a heartbeat's reply announces, despite lost requests, and only once if it is unusable."""

from __future__ import annotations

import asyncio

from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, modelsim_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.waiting import PATIENCE_S

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


async def test_a_newer_version_in_a_heartbeat_s_reply_is_fetched_despite_lost_requests_and_replies(
    control_plane: FakeControlPlane, claw: Claw
) -> None:
    control_plane.script("config", "request_lost", 503, "reply_lost")

    control_plane.configure(system_prompt="Newest words.")
    await control_plane.until(lambda: any(beat["config_version"] == 4 for beat in control_plane.heartbeats))

    assert "Newest words." in (await claw.chat("What are your instructions?"))["message"]
    asked = [call.body["config_version"] for call in control_plane.calls if call.endpoint == "config"]
    assert asked == [3, 3, 3, 3]


async def test_an_unusable_fetched_configuration_is_reported_once_until_another_version_comes(
    control_plane: FakeControlPlane, claw: Claw
) -> None:
    hold = control_plane.hold("config", "late")
    control_plane.configure(model_policy={"temperature": "hot"})
    async with asyncio.timeout(PATIENCE_S):
        await hold.reached.wait()
    # Heartbeats whose replies announce it while it is being fetched do not cause another fetch.
    control_plane.heartbeats.clear()
    await control_plane.until(lambda: len(control_plane.heartbeats) >= 3)
    hold.released.set()
    await control_plane.until(lambda: any(told["level"] == "error" for told in control_plane.callbacks()))
    control_plane.heartbeats.clear()
    await control_plane.until(lambda: len(control_plane.heartbeats) >= 5)

    (told,) = [told for told in control_plane.callbacks() if told["level"] == "error"]
    assert told["message"].startswith("Configuration 4 is not used: ")
    assert sum(call.endpoint == "config" for call in control_plane.calls) == 1
    control_plane.configure(model_policy={"primary": "second"})
    await control_plane.until(lambda: any(beat["config_version"] == 5 for beat in control_plane.heartbeats))
    assert (await claw.chat("Hello"))["model"] == "second"
