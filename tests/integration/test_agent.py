"""The agent as a real process against a real HTTP control plane that keeps the protocol: how it comes up, answers, ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from hydracore.agent import VERSION
from hydracore.agent.agent import Agent
from hydracore.agent.errors import AlreadyRunning
from hydracore.agent.messages import STAGES
from hydracore.agent_client import AgentAddress, AgentClient, AgentUnreachable
from tests.agent_fixtures import agent_client_fixture, agent_fixture, control_plane_fixture  # noqa: F401 - fixtures
from tests.agent_process import AgentProcess, free_address
from tests.fake_control_plane import FakeControlPlane

DAMAGE = b"something else altogether" * 400

# --- the way to healthy ----------------------------------------------------------------------------------------------


async def test_a_first_boot_goes_through_all_stages_in_order(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()

    assert control_plane.call_order() == ["enroll", "secrets"]
    assert control_plane.acknowledged
    assert control_plane.stages() == list(STAGES)
    callbacks = control_plane.callbacks()
    assert [callback["seq"] for callback in callbacks] == [1, 2, 3, 4, 5, 6]
    assert {callback["level"] for callback in callbacks} == {"info"}
    status = await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))
    assert (str(status.instance_id), status.attempt) == (control_plane.instance_id, 1)
    assert (str(status.boot_id), status.stage, status.healthy) == (control_plane.boot_id, "healthy", True)
    assert (status.runtime, status.config_version, status.error) == ("expressclaw", 3, None)
    assert (status.active_connections, status.skills_loaded, status.versions.agent) == (0, (), VERSION)


async def test_heartbeats_report_the_agent_s_state(control_plane: FakeControlPlane, agent: AgentProcess) -> None:
    agent.start()
    await control_plane.until(lambda: len(control_plane.heartbeats) >= 3)

    heartbeat = control_plane.heartbeats[-1]
    assert heartbeat.pop("uptime_seconds") in range(30)
    assert heartbeat == {
        "boot_id": control_plane.boot_id,
        "active_connections": 0,
        "versions": {"agent": VERSION, "openclaw": None, "node": None},
        "skills_loaded": [],
        "config_version": 3,
        "error": None,
    }


async def test_secrets_are_acknowledged_only_once_they_are_on_disk(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    on_disk: list[dict[str, Any]] = []
    control_plane.on_ack = lambda: on_disk.append(json.loads((agent.state / "secrets.json").read_bytes()))

    agent.start()
    await control_plane.until_healthy()

    assert [stored["secrets"]["key_id"] for stored in on_disk] == [control_plane.key_id]
    assert on_disk[0]["secrets"]["agent_key"] == control_plane.agent_key
    assert on_disk[0]["acknowledged"] is False


async def test_an_address_in_use_is_waited_for_and_reported_once(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    with socket.create_server(control_plane.listen):
        agent.start()
        await control_plane.until(lambda: "runtime_started" in control_plane.stages())
        await control_plane.until(lambda: len(control_plane.callbacks()) == 6)
    await control_plane.until_healthy()

    callbacks = control_plane.callbacks()
    warnings = [callback["message"] for callback in callbacks if callback["level"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Cannot listen on {control_plane.listen[0]}")


async def test_an_unknown_runtime_is_reported_and_the_agent_is_not_healthy(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    control_plane.runtime["type"] = "openclaw"

    agent.start()
    await control_plane.until(lambda: any(c["level"] == "error" for c in control_plane.callbacks()))

    status = await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))
    assert (status.healthy, status.stage, status.config_version) == (False, "configured", None)
    assert status.error is not None
    assert status.error.code == "runtime_unknown"


# --- its own API -----------------------------------------------------------------------------------------------------


async def test_the_agents_api_needs_its_token(control_plane: FakeControlPlane, agent: AgentProcess) -> None:
    agent.start()
    await control_plane.until_healthy()
    host, port = control_plane.listen
    good = {"Authorization": f"Bearer {control_plane.control_token}"}
    bad = {"Authorization": "Bearer wrong"}

    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client:
        answers = {
            "none": await client.get("/api/status"),
            "wrong": await client.get("/api/status", headers=bad),
            "basic": await client.get("/api/status", auth=("user", control_plane.control_token)),
            "agent_key": await client.get(
                "/api/status", headers={"Authorization": f"Bearer {control_plane.agent_key}"}
            ),
            "unknown_route": await client.get("/nowhere", headers=bad),
            "drain": await client.post("/api/drain", headers=bad),
        }
        assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 401)
        assert (await client.get("/nowhere", headers=good)).status_code == 404
        wrong_method = await client.delete("/api/status", headers=good)
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "GET")
        assert (await client.get("/api/status", headers=good)).status_code == 200


async def test_draining_reports_the_number_of_open_chats(
    control_plane: FakeControlPlane, agent: AgentProcess, agent_client: AgentClient
) -> None:
    agent.start()
    await control_plane.until_healthy()

    first = await agent_client.drain(AgentAddress(*control_plane.listen, control_plane.control_token))
    second = await agent_client.drain(AgentAddress(*control_plane.listen, control_plane.control_token))

    assert (first.active_connections, second.active_connections) == (0, 0)


# --- as a process ----------------------------------------------------------------------------------------------------


async def test_a_second_agent_on_the_same_root_is_refused(control_plane: FakeControlPlane, agent: AgentProcess) -> None:
    agent.start()
    await control_plane.until_healthy()
    second = AgentProcess(agent.root)
    second.stdout, second.stderr = agent.root / "second.stdout", agent.root / "second.stderr"

    second.start()

    assert await second.exit_code() == 3
    assert second.output().count("\n") == 1
    assert "another agent runs on this root" in second.output()
    assert agent.is_alive


@pytest.mark.parametrize("content", [None, "", "{", '{"attempt": 1}', '{"enrol_token": "tell-no-one", "attempt": "x"}'])
async def test_an_agent_without_a_valid_boot_file_exits_with_a_one_line_error(
    tmp_path: Path, content: str | None
) -> None:
    agent = AgentProcess(tmp_path)
    if content is not None:
        agent.write_boot_file(content)

    agent.start()

    assert await agent.exit_code() == 2
    assert agent.output().count("\n") == 1
    assert "etc/hydracore/agent.json" in agent.output()
    assert not (tmp_path / "var").exists(), "an agent that cannot start leaves nothing on the machine"
    assert "tell-no-one" not in agent.output()


@pytest.mark.parametrize("name", ["keys.json", "chats.sqlite"])
async def test_damaged_keys_or_chats_stop_the_agent_and_are_not_overwritten(
    control_plane: FakeControlPlane, agent: AgentProcess, name: str
) -> None:
    agent.state.mkdir(parents=True)
    damaged = agent.state / name
    damaged.touch(mode=0o600)
    damaged.write_bytes(DAMAGE)

    agent.start()

    assert await agent.exit_code() == 4
    assert name in agent.output()
    assert agent.output().count("\n") == 1
    assert damaged.read_bytes() == DAMAGE
    assert control_plane.calls == []


async def test_a_damaged_spool_is_set_aside_and_the_agent_starts(
    control_plane: FakeControlPlane, agent: AgentProcess
) -> None:
    agent.start()
    await control_plane.until_healthy()
    agent.signal(signal.SIGTERM)
    await agent.exit_code()
    (agent.state / "spool.sqlite").write_bytes(DAMAGE)
    control_plane.heartbeats.clear()

    agent.start()
    await control_plane.until_healthy()

    assert len(control_plane.boots) == 2
    assert len(control_plane.issued_keys) == 1
    assert (agent.state / "spool.sqlite.damaged").read_bytes() == DAMAGE


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, "waiting"), (signal.SIGTERM, "healthy")])
async def test_sigint_or_sigterm_stops_the_agent_with_exit_code_0(
    control_plane: FakeControlPlane, agent: AgentProcess, number: signal.Signals, moment: str
) -> None:
    if moment == "waiting":
        await control_plane.stop()
    agent.start()
    if moment == "waiting":
        await agent.until_logged("control_plane_retry")
    else:
        await control_plane.until_healthy()

    agent.signal(number)

    assert await agent.exit_code(timeout_s=5) == 0
    assert agent.log()[-1]["event"] == "agent_stopped"


async def test_agents_can_run_as_tasks_of_one_process_and_be_cancelled(
    control_plane: FakeControlPlane, tmp_path: Path, agent_client: AgentClient
) -> None:
    other = FakeControlPlane(listen=free_address(control_plane.listen[0]))
    await other.start()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    tasks: list[asyncio.Task[None]] = []
    for name, fake in (("one", control_plane), ("other", other)):
        AgentProcess(tmp_path / name).write_boot_file(fake.boot_file())
        tasks.append(asyncio.create_task(Agent(tmp_path / name).run()))
    await control_plane.until_healthy()
    await other.until_healthy()

    with pytest.raises(AlreadyRunning):
        await Agent(tmp_path / "one").run()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    other.gone = True
    await tasks[1]

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(AgentUnreachable):
        await agent_client.status(AgentAddress(*control_plane.listen, control_plane.control_token))
    await other.stop()
