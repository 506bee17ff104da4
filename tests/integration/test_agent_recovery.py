"""The agent when packets are lost, its control plane is away, or it is killed: it continues where it was."""

from __future__ import annotations

import socket
from uuid import uuid4

import pytest

from hydracore.agent.messages import STAGES
from hydracore.agent_client import AgentAddress, AgentClient
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture, start_and_hold  # noqa: F401 - fixtures
from tests.agent_process import AgentProcess
from tests.fake_control_plane import ENDPOINTS, FakeControlPlane


def keys_on_disk(agent: AgentProcess) -> bytes:
    return (agent.state / "keys.json").read_bytes()


# --- lost packets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["request_lost", "reply_lost", 500, 503, 404])
async def test_every_failed_call_is_retried(
    control_plane: FakeControlPlane, agent: AgentProcess, trouble: str | int
) -> None:
    for endpoint in ENDPOINTS:
        control_plane.script(endpoint, trouble)

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.stages() == list(STAGES)
    assert len(control_plane.boots) == 1
    assert len(control_plane.issued_keys) == 1


async def test_callbacks_arrive_once_and_in_order_when_requests_or_replies_are_lost(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    control_plane.script("callback", "request_lost", "reply_lost", 503, "fine")
    agent.start()
    await control_plane.until_healthy()
    control_plane.script("callback", "reply_lost", 503, "request_lost", "reply_lost")
    control_plane.rotate_key()  # makes the agent send another callback
    await control_plane.until(lambda: sum(call.endpoint == "callback" for call in control_plane.calls) >= 8)

    # The control plane itself refuses gaps and a number used twice.
    assert control_plane.stages() == [*STAGES, STAGES[-1]]


async def test_callbacks_that_the_control_plane_has_lost_are_sent_again(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    told = list(control_plane.callbacks())

    control_plane.lose_callbacks(4)
    control_plane.rotate_key()  # makes the agent send another callback
    await control_plane.until(lambda: len(control_plane.callbacks()) == 7)

    assert control_plane.callbacks()[:6] == told


async def test_an_answer_that_does_not_match_its_request_is_ignored(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    another = {"instance_id": control_plane.instance_id, "attempt": 1, "boot_id": str(uuid4())}
    control_plane.script("enroll", (200, another))
    wrong = [(200, {"seq": 99, "duplicate": False}), *((409, {"expected_seq": seq}) for seq in (0, 99, 2**63))]
    control_plane.script("callback", *wrong)

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order()[:3] == ["enroll", "enroll", "secrets"]
    assert control_plane.stages() == list(STAGES)
    assert len(control_plane.boots) == 1


async def test_an_agent_waits_for_a_control_plane_that_is_down_at_its_start(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await control_plane.stop()
    agent.start()
    await agent.until_logged("control_plane_retry", times=3)

    await control_plane.start()
    await control_plane.until_healthy()

    assert control_plane.stages() == list(STAGES)


async def test_stages_reached_while_the_control_plane_is_down_are_reported_afterwards(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    with socket.create_server(control_plane.listen):
        agent.start()
        await control_plane.until(lambda: control_plane.stages()[-1:] == ["runtime_started"])
        await control_plane.stop()
    await agent.until_logged("heartbeat_failed")
    status = await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))

    await control_plane.start()
    await control_plane.until_healthy()

    assert status.healthy
    assert control_plane.boots == [str(status.boot_id)]
    stages = control_plane.stages()
    assert sorted(stages, key=STAGES.index) == stages
    assert set(stages) == set(STAGES)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_an_agent_killed_in_a_call_resumes_with_its_keys_and_a_new_boot(
    control_plane: FakeControlPlane, agent: AgentProcess, endpoint: str, when: str
) -> None:
    hold = await start_and_hold(control_plane, agent, endpoint, when)
    keys = keys_on_disk(agent)
    await agent.kill()
    hold.released.set()
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert keys_on_disk(agent) == keys
    enrolments = [call.body for call in control_plane.calls if call.endpoint == "enroll"]
    assert enrolments[0]["boot_id"] != enrolments[-1]["boot_id"]
    assert control_plane.stages() == list(STAGES)
    assert len(control_plane.issued_keys) == (2 if endpoint == "secrets/ack" else 1)
    assert {heartbeat["boot_id"] for heartbeat in control_plane.heartbeats} == {control_plane.boot_id}


async def kill_before_any_callback(control_plane: FakeControlPlane, agent: AgentProcess) -> None:
    """Kill an agent that is healthy and could not deliver a single callback; the next one could."""
    control_plane.script("callback", *[503] * 1000)
    agent.start()
    await control_plane.until(lambda: bool(control_plane.heartbeats))
    await agent.kill()
    control_plane._troubles.clear()


async def test_pending_callbacks_of_a_killed_boot_are_delivered_before_the_next_boot_enrols(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await kill_before_any_callback(control_plane, agent)
    assert control_plane.stages() == []

    agent.start()
    await control_plane.until(lambda: len(control_plane.boots) == 2)

    assert control_plane.stages(control_plane.boots[0]) == list(STAGES)


async def test_pending_callbacks_of_a_killed_boot_are_delivered_after_a_key_rotation(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await kill_before_any_callback(control_plane, agent)
    control_plane.rotate_key()
    # The first try to get another key is lost after it was carried out.
    control_plane.script("secrets/ack", "reply_lost")
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    before, after = control_plane.boots
    assert control_plane.stages(before) == control_plane.stages(after) == list(STAGES)
    assert len(control_plane.issued_keys) == 2
    asked = [call.body["boot_id"] for call in control_plane.calls if call.endpoint == "secrets"]
    assert asked[1:] == [before] * (len(asked) - 1)


async def test_callbacks_lost_by_a_restore_are_sent_again_before_the_pending_ones_of_a_killed_boot(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    control_plane.script("callback", *[503] * 1000)
    control_plane.rotate_key()  # makes the agent send another callback
    await agent.until_logged("callback_spooled", times=len(STAGES) + 1)
    await agent.kill()
    control_plane._troubles.clear()
    control_plane.lose_callbacks(3)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.stages(control_plane.boots[0]) == [*STAGES, STAGES[-1]]


@pytest.mark.parametrize(("refusals", "told"), [(1, list(STAGES)), (2, [])])
async def test_an_agent_starts_even_if_the_key_for_callbacks_of_a_killed_boot_is_refused(
    control_plane: FakeControlPlane, agent: AgentProcess, refusals: int, told: list[str]
) -> None:
    await kill_before_any_callback(control_plane, agent)
    control_plane.script("callback", *[401] * refusals)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    before, after = control_plane.boots
    assert (control_plane.stages(before), control_plane.stages(after)) == (told, list(STAGES))
    assert ('"event":"leftover_callbacks_dropped"' in agent.output()) == (not told)


async def test_a_restarted_agent_reuses_its_secrets_configuration_and_address(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()
    control_plane.configure(agent_name="Ada")
    await control_plane.until(lambda: control_plane.heartbeats[-1]["config_version"] == control_plane.config_version)
    # A connection that the kernel still remembers when the next agent wants the port.
    await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))
    await agent.kill()
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()
    await control_plane.until(lambda: len(control_plane.heartbeats) >= 3)

    assert {callback["level"] for callback in control_plane.callbacks()} == {"info"}
    assert control_plane.call_order() == ["enroll", "secrets", "config", "enroll"]


async def test_a_late_answer_does_not_bring_back_a_replaced_key(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await start_and_hold(control_plane, agent, "callback", "late")
    control_plane.rotate_key()
    await control_plane.until(lambda: len(control_plane.issued_keys) == 2 and control_plane.acknowledged)
    hold.released.set()
    await control_plane.until_healthy()
    await agent.kill()
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order() == ["enroll", "secrets", "secrets", "secrets/ack", "enroll"]


async def test_a_restarted_agent_acknowledges_secrets_that_were_stored_before_it_was_killed(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await start_and_hold(control_plane, agent, "callback", "before")
    await agent.kill()
    hold.released.set()
    known_at_the_kill = control_plane.acknowledged
    # Callbacks of the killed boot would acknowledge them as well.
    control_plane.script("callback", 500, 500, 500)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert not known_at_the_kill
    assert control_plane.call_order()[-2:] == ["enroll", "secrets/ack"]
    assert control_plane.acknowledged
    assert len(control_plane.issued_keys) == 1


async def test_stored_secrets_that_are_refused_when_they_are_acknowledged_are_replaced(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await start_and_hold(control_plane, agent, "callback", "before")
    await agent.kill()
    hold.released.set()
    control_plane.script("callback", 500, 500, 500)
    # As where the key was rotated after it had been fetched.
    control_plane.script("secrets/ack", 409)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order()[-3:] == ["enroll", "secrets/ack", "secrets"]
    assert control_plane.acknowledged
