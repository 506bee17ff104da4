"""The agent when its disk is full, for its log as for its state: it lives, reports it, and catches up once there is room."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
from asyncio.subprocess import PIPE

import pytest

from hydracore.agent.messages import STAGES
from hydracore.agent_client import AgentAddress, AgentClient
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture  # noqa: F401 - fixtures
from tests.agent_process import REPOSITORY, AgentProcess
from tests.disk import limited_file_size
from tests.fake_control_plane import FakeControlPlane
from tests.waiting import PATIENCE_S, until

#: More bytes than an agent's log has in a test, and fewer than the write-ahead log of its spool has once it is healthy.
LOG_ONLY_BYTES = 16 * 1024


def disk(agent: AgentProcess, *, is_full: bool, file_bytes_max: int = 0) -> None:
    """Let the agent's process write no file beyond `file_bytes_max`, or every one again."""
    _, hard = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (file_bytes_max if is_full else hard, hard))


def configuration_on_disk(agent: AgentProcess) -> int:
    return json.loads((agent.state / "config.json").read_bytes())["config_version"]


def errors(control_plane: FakeControlPlane) -> list[str | None]:
    """What the heartbeats complained of, in their order."""
    return [error and error["code"] for error in (beat["error"] for beat in control_plane.heartbeats)]


async def test_a_configuration_takes_effect_on_a_full_disk_and_is_stored_once_there_is_room(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    disk(agent, is_full=True)
    control_plane.configure(agent_name="Bea")

    # An earlier heartbeat may report it too: for a callback that was accepted and could not be marked so.
    def told_in_force() -> bool:
        beat = control_plane.heartbeats[-1]
        return beat["config_version"] == control_plane.config_version and errors(control_plane)[-1] == "disk_refuses"

    await control_plane.until(told_in_force)
    assert configuration_on_disk(agent) < control_plane.config_version

    disk(agent, is_full=False)
    await control_plane.until(lambda: errors(control_plane)[-1:] == [None])
    await until(lambda: configuration_on_disk(agent) == control_plane.config_version)
    assert len(control_plane.boots) == 1


async def test_a_new_key_is_acknowledged_only_once_the_full_disk_can_store_it(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()
    disk(agent, is_full=True)
    control_plane.rotate_key()
    await control_plane.until(lambda: len(control_plane.issued_keys) == 2)
    await control_plane.until(lambda: control_plane.call_order().count("secrets") == 3)
    status = await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))

    assert status.error is not None
    assert status.error.code == "disk_refuses"
    assert not control_plane.acknowledged

    disk(agent, is_full=False)
    control_plane.heartbeats.clear()
    await control_plane.until(lambda: errors(control_plane)[-1:] == [None])
    assert control_plane.acknowledged
    assert len(control_plane.boots) == 1


async def test_an_agent_survives_a_callback_that_it_cannot_store_on_a_full_disk(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    disk(agent, is_full=True)
    # The agent refuses it, and would report that with a callback.
    control_plane.configure(model_policy={"temperature": "hot"})
    await control_plane.until(lambda: errors(control_plane)[-1:] == ["disk_refuses"])
    disk(agent, is_full=False)
    await control_plane.until(lambda: errors(control_plane)[-1:] == [None])
    control_plane.rotate_key()
    # With the new key it gets that configuration once more.
    replaced, refused = "The agent key was replaced", f"Configuration {control_plane.config_version} is not used"

    def told_again() -> bool:
        messages = [callback["message"] for callback in control_plane.callbacks()]
        return replaced in messages and messages[-1].startswith(refused)

    await control_plane.until(told_again)
    assert len(control_plane.boots) == 1


async def test_an_agent_whose_disk_fills_before_it_is_healthy_reports_healthy_once_there_is_room(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    usable = control_plane.runtime
    control_plane.configure(model_policy={"temperature": "hot"})
    agent.start()
    await control_plane.until(lambda: "configured" in control_plane.stages())
    address = AgentAddress(*control_plane.listen, control_plane.control_token)
    disk(agent, is_full=True)
    control_plane.config_version, control_plane.runtime = control_plane.config_version + 1, usable
    await agent_client.put_config(address, control_plane.config_version, usable)
    await control_plane.until(lambda: errors(control_plane)[-1:] == ["disk_refuses"])
    assert "healthy" not in control_plane.stages()

    disk(agent, is_full=False)
    await control_plane.until_healthy()
    assert len(control_plane.boots) == 1


async def test_an_agent_survives_a_full_disk_while_it_delivers_callbacks_of_a_killed_boot(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    control_plane.script("callback", *[503] * 1000)
    agent.start()
    await control_plane.until(lambda: bool(control_plane.heartbeats))
    await agent.kill()
    control_plane.heartbeats.clear()
    control_plane.calls.clear()
    control_plane._troubles.clear()
    hold = control_plane.hold("callback", "late")
    agent.start()
    async with asyncio.timeout(PATIENCE_S):
        await hold.reached.wait()
    disk(agent, is_full=True)
    hold.released.set()
    # It cannot note that they were accepted, and sends them again.
    await until(lambda: len(control_plane.calls) == 2 or not agent.is_alive)
    assert agent.is_alive

    disk(agent, is_full=False)
    await control_plane.until_healthy()
    before, after = control_plane.boots
    assert control_plane.stages(before) == control_plane.stages(after) == list(STAGES)


async def test_an_agent_superseded_while_its_disk_is_full_boots_again_once_there_is_room(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    disk(agent, is_full=True, file_bytes_max=LOG_ONLY_BYTES)
    control_plane.script("heartbeat", 410)

    def waits() -> bool:
        # Before that, it may have retried to note that its callbacks were accepted.
        return '"event":"disk_retry"' in agent.output().partition('"event":"boot_superseded"')[2]

    await until(lambda: waits() or not agent.is_alive)
    assert agent.is_alive
    assert len(control_plane.boots) == 1

    disk(agent, is_full=False)
    await control_plane.until(lambda: len(control_plane.boots) == 2)
    await control_plane.until_healthy()
    assert control_plane.stages() == list(STAGES)


@pytest.mark.parametrize(
    "size", [pytest.param(0, id="keys"), pytest.param(1000, id="spool"), pytest.param(40_000, id="chats")]
)
async def test_a_start_on_a_full_disk_fails_with_one_line_and_a_start_with_room_succeeds(
    control_plane: FakeControlPlane, agent: AgentProcess, size: int
) -> None:
    # -B: Python would leave pieces of what it compiles.
    command = (sys.executable, "-B", "-m", "hydracore.agent", "--root", str(agent.root))
    with limited_file_size(size):
        start = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE)
    log, complaint = (text.decode() for text in await start.communicate())

    assert start.returncode == 1
    assert re.fullmatch(r"hydracore agent: the disk refuses writes: .+\n", complaint)
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["disk_refuses"]
    assert not control_plane.calls

    agent.start()
    await control_plane.until_healthy()


@pytest.mark.parametrize("refused", ["", "lock"], ids=["directory", "lock"])
async def test_a_start_that_cannot_create_its_directory_or_lock_fails_with_one_line(
    control_plane: FakeControlPlane, agent: AgentProcess, refused: str
) -> None:
    # A disk without free inodes refuses them, and so does one where something else has their names.
    in_the_way = agent.state / refused / "in-the-way" if refused else agent.state
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()

    command = (sys.executable, "-m", "hydracore.agent", "--root", str(agent.root))
    start = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=PIPE, stderr=PIPE)
    log, complaint = (text.decode() for text in await start.communicate())

    assert start.returncode == 1
    assert re.fullmatch(r"hydracore agent: the disk refuses writes: .+\n", complaint)
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["disk_refuses"]
    assert not control_plane.calls

    in_the_way.unlink()
    if refused:
        in_the_way.parent.rmdir()
    agent.start()
    await control_plane.until_healthy()


async def test_a_retired_agent_exits_cleanly_even_if_it_cannot_write_its_retired_mark(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    # A folder in the place of the file that is to be renamed, as some file systems have room for an empty file when full.
    obstacle = agent.state / "retired.new"
    obstacle.mkdir()
    control_plane.gone = True
    assert await agent.exit_code() == 0
    assert not (agent.state / "retired").exists()

    obstacle.rmdir()
    agent.start()
    assert await agent.exit_code() == 0
    assert (agent.state / "retired").exists()
