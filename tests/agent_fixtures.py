"""An agent process that has not started yet, and the control plane it will find: fixtures, to be imported by name."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from secrets import randbelow

import pytest

from hydracore.agent_client import AgentClient
from tests.agent_process import AgentProcess, free_address
from tests.fake_control_plane import FakeControlPlane, Hold
from tests.waiting import PATIENCE_S


@pytest.fixture(name="control_plane")
async def control_plane_fixture() -> AsyncGenerator[FakeControlPlane]:
    # An address of its own for each test, as each VPS has one.
    host = ".".join(map(str, (127, 64 + randbelow(64), randbelow(256), 1 + randbelow(254))))
    fake = FakeControlPlane(listen=free_address(host))
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture(name="agent")
def agent_fixture(tmp_path: Path, control_plane: FakeControlPlane) -> Generator[AgentProcess]:
    """Whatever a test does with its agent, in the end it must not have printed a secret."""
    process = AgentProcess(tmp_path)
    process.write_boot_file(control_plane.boot_file())
    yield process
    process.stop_for_good()
    output = process.output()
    for secret in control_plane.secret_values():
        assert secret not in output
    assert "Traceback" not in output
    process.log()
    for path in process.state.iterdir() if process.state.exists() else ():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.fixture(name="agent_client")
async def agent_client_fixture() -> AsyncGenerator[AgentClient]:
    async with AgentClient(timeout_s=PATIENCE_S) as client:
        yield client


async def start_and_hold(control_plane: FakeControlPlane, agent: AgentProcess, endpoint: str, when: str) -> Hold:
    """Start the agent; where its first call of `endpoint` is stopped, as `hold` says."""
    if endpoint == "secrets/ack":
        # Of a key that replaces another: the first is acknowledged with a callback.
        agent.start()
        await control_plane.until_healthy()
        hold = control_plane.hold(endpoint, when)
        control_plane.rotate_key()
    else:
        hold = control_plane.hold(endpoint, when)
        agent.start()
    async with asyncio.timeout(PATIENCE_S):
        await hold.reached.wait()
    return hold
