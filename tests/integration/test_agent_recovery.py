"""The agent when packets are lost, its control plane is away, or it is killed: it goes on where it was."""

from __future__ import annotations

import socket
from uuid import uuid4

import pytest

from hydracore.agent.messages import STAGES
from hydracore.agent_client import AgentAddress, AgentClient
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture, stopped_at  # noqa: F401 - fixtures
from tests.agent_process import AgentProcess
from tests.fake_control_plane import ENDPOINTS, FakeControlPlane


def keys_on_disk(agent: AgentProcess) -> bytes:
    return (agent.state / "keys.json").read_bytes()


# --- lost packets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["request_lost", "reply_lost", 500, 503, 404])
async def test_every_call_that_fails_is_made_again(
    control_plane: FakeControlPlane, agent: AgentProcess, trouble: str | int
) -> None:
    for endpoint in ENDPOINTS:
        control_plane.trouble(endpoint, trouble)

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.stages() == list(STAGES)
    assert len(control_plane.boots) == 1
    assert len(control_plane.issued_keys) == 1


async def test_callbacks_arrive_once_and_in_order_whatever_is_lost(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    control_plane.trouble("callback", "request_lost", "reply_lost", 503, "fine")
    agent.start()
    await control_plane.until_healthy()
    control_plane.trouble("callback", "reply_lost", 503, "request_lost", "reply_lost")
    control_plane.rotate_key()  # makes the agent tell something new
    await control_plane.until(lambda: sum(call.endpoint == "callback" for call in control_plane.calls) >= 8)

    # The control plane itself refuses gaps and a number used twice.
    assert control_plane.stages() == [*STAGES, STAGES[-1]]


async def test_callbacks_that_the_control_plane_has_lost_are_sent_again(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    told = list(control_plane.told())

    control_plane.lose_callbacks(4)
    control_plane.rotate_key()  # makes the agent tell something new
    await control_plane.until(lambda: len(control_plane.told()) == 7)

    assert control_plane.told()[:6] == told


async def test_an_answer_to_something_else_than_was_asked_is_none(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    another = {"instance_id": control_plane.instance_id, "attempt": 1, "boot_id": str(uuid4())}
    control_plane.trouble("enroll", (200, another))
    wrong = [(200, {"seq": 99, "duplicate": False}), *((409, {"expected_seq": seq}) for seq in (0, 99, 2**63))]
    control_plane.trouble("callback", *wrong)

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.order()[:3] == ["enroll", "enroll", "secrets"]
    assert control_plane.stages() == list(STAGES)
    assert len(control_plane.boots) == 1


async def test_a_control_plane_that_is_down_at_first_is_waited_for(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await control_plane.stop()
    agent.start()
    await agent.until_logged("control_plane_retry", times=3)

    await control_plane.start()
    await control_plane.until_healthy()

    assert control_plane.stages() == list(STAGES)


async def test_what_happens_while_the_control_plane_is_down_is_told_afterwards(
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
    hold = await stopped_at(control_plane, agent, endpoint, when)
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


async def kill_before_it_tells(control_plane: FakeControlPlane, agent: AgentProcess) -> None:
    """Kill an agent that is healthy and could not deliver a single callback; the next one could."""
    control_plane.trouble("callback", *[503] * 1000)
    agent.start()
    await control_plane.until(lambda: bool(control_plane.heartbeats))
    await agent.kill()
    control_plane._troubles.clear()


async def test_a_killed_boot_is_told_to_its_end_before_the_next_one_enrols(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await kill_before_it_tells(control_plane, agent)
    assert control_plane.stages() == []

    agent.start()
    await control_plane.until(lambda: len(control_plane.boots) == 2)

    assert control_plane.stages(control_plane.boots[0]) == list(STAGES)


async def test_what_a_killed_boot_has_left_to_tell_outlasts_a_rotated_key(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    await kill_before_it_tells(control_plane, agent)
    control_plane.rotate_key()
    # The first try to get another key is lost after it was carried out.
    control_plane.trouble("secrets/ack", "reply_lost")
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    before, after = control_plane.boots
    assert control_plane.stages(before) == control_plane.stages(after) == list(STAGES)
    assert len(control_plane.issued_keys) == 2
    asked = [call.body["boot_id"] for call in control_plane.calls if call.endpoint == "secrets"]
    assert asked[1:] == [before] * (len(asked) - 1)


async def test_what_a_killed_boot_has_left_to_tell_comes_behind_what_a_restore_has_lost_of_it(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    control_plane.trouble("callback", *[503] * 1000)
    control_plane.rotate_key()  # makes the agent tell something new
    await agent.until_logged("callback_spooled", times=len(STAGES) + 1)
    await agent.kill()
    control_plane._troubles.clear()
    control_plane.lose_callbacks(3)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.stages(control_plane.boots[0]) == [*STAGES, STAGES[-1]]


@pytest.mark.parametrize(("refusals", "told"), [(1, list(STAGES)), (2, [])])
async def test_a_killed_boot_whose_key_is_refused_without_another_one_keeps_no_agent_from_starting(
    control_plane: FakeControlPlane, agent: AgentProcess, refusals: int, told: list[str]
) -> None:
    await kill_before_it_tells(control_plane, agent)
    control_plane.trouble("callback", *[401] * refusals)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    before, after = control_plane.boots
    assert (control_plane.stages(before), control_plane.stages(after)) == (told, list(STAGES))
    assert ('"event":"leftover_callbacks_dropped"' in agent.output()) == (not told)


async def test_a_restart_asks_for_no_secrets_and_no_configuration_again_and_takes_its_address_back(
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

    assert {callback["level"] for callback in control_plane.told()} == {"info"}
    assert control_plane.order() == ["enroll", "secrets", "config", "enroll"]


async def test_an_answer_that_comes_late_brings_no_replaced_key_back(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await stopped_at(control_plane, agent, "callback", "late")
    control_plane.rotate_key()
    await control_plane.until(lambda: len(control_plane.issued_keys) == 2 and control_plane.acknowledged)
    hold.released.set()
    await control_plane.until_healthy()
    await agent.kill()
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.order() == ["enroll", "secrets", "secrets", "secrets/ack", "enroll"]


async def test_secrets_that_nobody_knows_to_be_stored_are_acknowledged_before_anything_else(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await stopped_at(control_plane, agent, "callback", "before")
    await agent.kill()
    hold.released.set()
    known_at_the_kill = control_plane.acknowledged
    # What the killed boot has to tell would acknowledge them as well.
    control_plane.trouble("callback", 500, 500, 500)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert not known_at_the_kill
    assert control_plane.order()[-2:] == ["enroll", "secrets/ack"]
    assert control_plane.acknowledged
    assert len(control_plane.issued_keys) == 1


async def test_stored_secrets_that_are_refused_when_they_are_acknowledged_are_replaced(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    hold = await stopped_at(control_plane, agent, "callback", "before")
    await agent.kill()
    hold.released.set()
    control_plane.trouble("callback", 500, 500, 500)
    # As where the key was rotated after it had been fetched.
    control_plane.trouble("secrets/ack", 409)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert control_plane.order()[-3:] == ["enroll", "secrets/ack", "secrets"]
    assert control_plane.acknowledged
