"""Boots agents as processes, at most one per server at any time, even if cloudsim or an agent is killed at any moment.

Each server has a lock file. It is locked before the agent is started, and the agent inherits the open file. So
the kernel holds the lock for exactly as long as the agent lives, without any help of the agent or of cloudsim.
If cloudsim gets the lock, no agent lives. If not, it looks for the agent's process: first by the pid in the
store, then among all processes, in case cloudsim was killed between starting the agent and storing its pid.
"""

import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Protocol

import psutil
import structlog

from hydracore.cloudsim.disk import AGENT_LOG
from hydracore.cloudsim.processes import POLL_S, AgentProcess, find_process, process_with_pid
from hydracore.cloudsim.store import Store

_log = structlog.get_logger(__name__)

#: The environment variables that agents get. A VPS inherits nothing of the control plane, least of all its secrets.
ENVIRONMENT_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE")

#: The niceness of agents. A real VPS has its own processors; here a hundred booting agents must leave
#: some for requests that wait for answers.
NICENESS: Final = 5

#: A pause after each start of a process, which blocks everything else for some milliseconds. Requests
#: are served in between.
SPAWN_PAUSE_S: Final = 0.02

#: The longest time until a process that holds the lock can be found among the processes.
FIND_PROCESS_S_MAX: Final = 5.0
NO_PROCESS_FOUND: Final = "a process holds the server's lock, but no agent process was found"

REAP_INTERVAL_S: Final = 0.5


class BootError(Exception):
    """The agent of a server could not be started."""


class Booter(Protocol):
    """Starts and stops the agents of servers, by the servers' ids."""

    async def open(self) -> None: ...

    async def start(self, server_id: int) -> None:
        """Make sure that an agent runs: adopt a living one, or else start one."""
        ...

    async def stop(self, server_id: int, *, grace_s: float) -> bool:
        """Make sure that no agent runs: ask it to end, and kill it after `grace_s`. Returns whether there was one."""
        ...

    def remove_server(self, server_id: int) -> None:
        """Drop what is kept for a server that is gone. Its agent must have been stopped."""
        ...

    def alive(self, server_id: int) -> bool: ...

    def pid(self, server_id: int) -> int | None: ...

    async def aclose(self) -> None: ...


class ProcessBooter:
    """Runs agents as detached processes, which outlive cloudsim. `disks` and `locks`: absolute paths of folders."""

    def __init__(self, *, disks: Path, locks: Path, store: Store) -> None:
        assert disks.is_absolute()
        self._disks = disks
        self._locks = locks
        self._store = store
        self._agents: dict[int, AgentProcess] = {}
        self._spawn_lock = asyncio.Lock()
        self._reaper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._locks.mkdir(mode=0o700, exist_ok=True)
        self._reaper = asyncio.create_task(self._reap())

    async def start(self, server_id: int) -> None:
        async with self._spawn_lock:
            if await self._start_or_adopt(server_id):
                await asyncio.sleep(SPAWN_PAUSE_S)

    async def stop(self, server_id: int, *, grace_s: float) -> bool:
        deadline_s = asyncio.get_running_loop().time() + FIND_PROCESS_S_MAX
        stopped = False
        while (descriptor := _try_lock(self._lock_path(server_id))) is None:
            agent = self._find(server_id)
            if agent is not None:
                stopped = True
                await agent.end(grace_s)
            elif asyncio.get_running_loop().time() > deadline_s:
                raise BootError(NO_PROCESS_FOUND)
            else:
                await asyncio.sleep(POLL_S)
        os.close(descriptor)
        return stopped

    def remove_server(self, server_id: int) -> None:
        self._agents.pop(server_id, None)
        self._lock_path(server_id).unlink(missing_ok=True)

    def alive(self, server_id: int) -> bool:
        return self._find(server_id) is not None

    def pid(self, server_id: int) -> int | None:
        agent = self._find(server_id)
        return agent.pid if agent is not None else None

    async def aclose(self) -> None:
        """Let go of the agents without stopping them."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        for agent in self._agents.values():
            agent.detach()

    async def _start_or_adopt(self, server_id: int) -> bool:
        """Returns whether a new agent was started. Raises `BootError`."""
        deadline_s = asyncio.get_running_loop().time() + FIND_PROCESS_S_MAX
        while (descriptor := _try_lock(self._lock_path(server_id))) is None:
            if self._find(server_id) is not None:
                return False
            if asyncio.get_running_loop().time() > deadline_s:
                raise BootError(NO_PROCESS_FOUND)
            await asyncio.sleep(POLL_S)
        try:
            self._spawn(server_id, descriptor)
        finally:
            os.close(descriptor)
        return True

    def _spawn(self, server_id: int, lock: int) -> None:
        """Start an agent and store its pid, with no `await` in between, so that no cancellation can come in between."""
        root = self._root(server_id)
        log_path = root / AGENT_LOG
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as stream:
            child = subprocess.Popen(  # noqa: S603 - our own program, on a folder that we made
                [sys.executable, "-m", "hydracore.agent", "--root", str(root)],
                cwd=root,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        process = psutil.Process(child.pid)
        process.nice(NICENESS)
        self._agents[server_id] = AgentProcess(process, child)
        self._store.set_agent(server_id, pid=child.pid, started=process.create_time())
        _log.info("agent_started", server_id=server_id, pid=child.pid)

    def _find(self, server_id: int) -> AgentProcess | None:
        """The living agent of a server, or None. One that another cloudsim started is adopted."""
        agent = self._agents.get(server_id)
        if agent is not None and agent.alive():
            return agent
        # A living agent holds the lock. If the lock is free, there is no need to search all processes.
        descriptor = _try_lock(self._lock_path(server_id))
        if descriptor is not None:
            os.close(descriptor)
            return None
        server = self._store.server(server_id)
        process = process_with_pid(self._root(server_id), server.agent_pid, server.agent_started) if server else None
        process = process or find_process(self._root(server_id))
        if process is None:
            return None
        agent = self._agents[server_id] = AgentProcess(process, None)
        self._store.set_agent(server_id, pid=process.pid, started=process.create_time())
        _log.info("agent_adopted", server_id=server_id, pid=process.pid)
        return agent

    async def _reap(self) -> None:
        """Collect agents that have ended, so that none stays behind as a zombie."""
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            for server_id, agent in list(self._agents.items()):
                if not agent.alive():
                    _log.info("agent_ended", server_id=server_id, pid=agent.pid)
                    del self._agents[server_id]

    def _root(self, server_id: int) -> Path:
        return self._disks / str(server_id)

    def _lock_path(self, server_id: int) -> Path:
        return self._locks / f"{server_id}.lock"


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _environment() -> dict[str, str]:
    # The agent is this very package, wherever that was imported from.
    package_root = str(Path(__file__).resolve().parents[2])
    kept = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": package_root, "PYTHONUNBUFFERED": "1"}
