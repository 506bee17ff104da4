"""Agent processes: whether they live, ending them, and finding them among all processes of the machine."""

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Final

import psutil

#: The most that two readings of one process's start may differ: they are derived from a clock that is adjusted.
START_TOLERANCE_S: Final = 2.0

POLL_S: Final = 0.01

#: The longest wait for a killed process to be gone.
KILLED_S_MAX: Final = 3.0


class AgentProcess:
    """An agent's process: our child, or one that an earlier cloudsim left behind."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None) -> None:
        self._process = process
        self._child = child

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def end(self, grace_s: float) -> None:
        """Ask it to end; after `grace_s` (0: at once) kill it, with all that it started. Returns when it is dead."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if grace_s > 0.0:
                self._process.terminate()
                await self._wait(grace_s)
        if self.alive():
            # It leads a process group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._wait(KILLED_S_MAX)

    def detach(self) -> None:
        """Let the process outlive us."""
        if self._child is not None and self.alive():
            # Otherwise Popen would warn, when it is deleted, that its child is still running.
            self._child.returncode = 0

    async def _wait(self, limit_s: float) -> None:
        # A process that is not our child cannot be waited for, only looked at.
        deadline_s = asyncio.get_running_loop().time() + limit_s
        while self.alive() and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(POLL_S)


def process_with_pid(root: Path, pid: int | None, started: float | None) -> psutil.Process | None:
    """The process with the stored `pid`, or None if that is not the agent that was `started` then."""
    if pid is None or started is None:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < START_TOLERANCE_S and _is_agent_of(process.cmdline(), root)
    except psutil.Error:
        return None
    return process if same else None


def find_process(root: Path) -> psutil.Process | None:
    """The process that runs an agent on this disk."""
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and _is_agent_of(process.info["cmdline"] or [], root):
            return process
    return None


def _is_agent_of(command: list[str], root: Path) -> bool:
    return "hydracore.agent" in command and command[-2:] == ["--root", str(root)]
