"""The agent when its control plane says no: it asks again, slowly, or stops for good."""

from __future__ import annotations

from uuid import UUID

import pytest

from hydracore.agent.messages import STAGES
from hydracore.agent_client import AgentAddress, AgentBadAnswer, AgentClient
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture, start_and_hold  # noqa: F401 - fixtures
from tests.agent_process import AgentProcess, free_address
from tests.fake_control_plane import ENDPOINTS, FakeControlPlane

# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_replaced(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()
    first_key = control_plane.agent_key
    await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))

    control_plane.control_token += "-second"
    control_plane.config_version = 4
    control_plane.rotate_key()
    control_plane.heartbeats.clear()
    await control_plane.until(lambda: any(beat["config_version"] == 4 for beat in control_plane.heartbeats))

    assert control_plane.agent_key != first_key
    assert control_plane.acknowledged
    assert len(control_plane.boots) == 1
    await control_plane.until(lambda: control_plane.stages() == [*STAGES, "healthy"])
    status = await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))
    assert (status.healthy, status.config_version) == (True, 4)
    with pytest.raises(AgentBadAnswer):
        await agent_client.status(
            AgentAddress(*control_plane.listen, control_plane.control_token.removesuffix("-second"))
        )


async def test_an_agent_moves_to_the_address_that_comes_with_a_new_key(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()

    control_plane.listen = free_address(control_plane.listen[0])
    control_plane.rotate_key()
    await control_plane.until(lambda: len(control_plane.stages()) == 7)
    await agent.until_logged("listening", times=2)

    assert (await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))).healthy


@pytest.mark.parametrize("host", ["no address", "a..b", "x" * 64])
async def test_an_invalid_address_is_reported_and_the_agent_waits_for_a_valid_one(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient, host: str
) -> None:
    agent.start()
    await control_plane.until_healthy()
    address, port = control_plane.listen

    control_plane.listen = (host, port)
    control_plane.rotate_key()
    await agent.until_logged("cannot_listen")
    control_plane.listen = (address, port)
    control_plane.rotate_key()
    await agent.until_logged("listening", times=2)

    assert (await agent_client.status(AgentAddress(address, port, control_plane.control_token))).healthy
    await control_plane.until(lambda: any(told["level"] == "warning" for told in control_plane.callbacks()))
    warning = next(told["message"] for told in control_plane.callbacks() if told["level"] == "warning")
    assert warning == f"Cannot listen on {host} port {port} yet: Name or service not known"
    assert len(control_plane.boots) == 1


async def test_an_agent_refused_its_secrets_asks_again_slowly_until_the_key_is_rotated(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    # The control plane knows another key and thinks that this agent has it.
    control_plane.agent_key = "somebody-elses"
    control_plane.calls.clear()
    await control_plane.until(lambda: [call.status for call in control_plane.calls].count(409) == 2)
    assert len(control_plane.calls) < 10

    control_plane.rotate_key()
    control_plane.heartbeats.clear()
    await control_plane.until(lambda: bool(control_plane.heartbeats))

    assert len(control_plane.boots) == 1


@pytest.mark.parametrize("refusal", [401, 409])
async def test_a_refused_enrolment_is_tried_again_slowly(
    control_plane: FakeControlPlane, agent: AgentProcess, refusal: int
) -> None:
    if refusal == 401:
        control_plane.token_refused = True
    else:
        control_plane.public_keys = {"signing": "somebody", "vpn": "else"}
    agent.start()
    await control_plane.until(lambda: len(control_plane.calls) == 2)
    assert [call.status for call in control_plane.calls] == [refusal, refusal]

    control_plane.token_refused, control_plane.public_keys = False, None
    await control_plane.until_healthy()

    assert len({call.body["boot_id"] for call in control_plane.calls if call.endpoint == "enroll"}) == 1


async def test_an_enrolment_that_is_answered_for_another_boot_is_tried_again(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    elsewhere = {"instance_id": control_plane.instance_id, "attempt": 1, "boot_id": str(UUID(int=7))}
    control_plane.script("enroll", (200, elsewhere))

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order() == ["enroll", "enroll", "secrets"]


async def test_an_agent_enrols_again_if_the_control_plane_does_not_know_its_boot(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    control_plane.script("secrets", 401)

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order() == ["enroll", "secrets", "enroll", "secrets"]
    assert len(control_plane.boots) == 1


# --- 410 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ENDPOINTS)
async def test_an_agent_that_gets_a_410_from_any_endpoint_stops_for_good(
    control_plane: FakeControlPlane, agent: AgentProcess, stage: str
) -> None:
    if stage == "heartbeat":
        agent.start()
        await control_plane.until_healthy()
        control_plane.gone = True
    elif stage == "enroll":
        control_plane.gone = True
        agent.start()
    else:
        hold = await start_and_hold(control_plane, agent, stage, "before")
        control_plane.gone = True
        hold.released.set()

    assert await agent.exit_code() == 0
    control_plane.calls.clear()
    control_plane.gone = False
    agent.start()
    assert await agent.exit_code() == 0
    assert control_plane.calls == []


async def test_an_agent_superseded_by_a_late_enrolment_boots_again(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()

    # An enrolment that an earlier process sent before it was killed, and that arrives only now.
    control_plane.boot_id = "00000000-0000-4000-8000-000000000000"
    control_plane.boots.append(control_plane.boot_id)
    await control_plane.until(lambda: len(control_plane.boots) == 3)
    control_plane.heartbeats.clear()
    await control_plane.until_healthy()

    assert agent.is_alive
    assert len(control_plane.issued_keys) == 1


async def test_an_agent_whose_second_boot_is_refused_too_stops_for_good(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    control_plane.script("heartbeat", *[410] * 1000)
    agent.start()

    assert await agent.exit_code() == 0
    assert len(control_plane.boots) == 2
