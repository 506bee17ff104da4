"""Boots agents as tasks of cloudsim itself: fast and cheap, for tests and benchmarks. They end when cloudsim does."""

import asyncio
from pathlib import Path

import structlog

from hydracore.cloudsim.boot import ProcessBooter

_log = structlog.get_logger(__name__)


class InlineBooter:
    """`detached` ends the agent processes that an earlier cloudsim on the same home left behind."""

    def __init__(self, *, disks: Path, detached: ProcessBooter) -> None:
        self._disks = disks
        self._detached = detached
        self._agents: dict[int, asyncio.Task[None]] = {}

    async def open(self) -> None:
        await self._detached.open()

    async def start(self, server_id: int) -> None:
        if self.alive(server_id):
            return
        await self._detached.stop(server_id, grace_s=0.0)
        self._agents[server_id] = asyncio.create_task(self._run(server_id))

    async def stop(self, server_id: int, *, grace_s: float) -> bool:
        stopped = await self._detached.stop(server_id, grace_s=grace_s)
        agent = self._agents.pop(server_id, None)
        if agent is None or agent.done():
            return stopped
        agent.cancel()
        await asyncio.wait([agent])
        return True

    def remove_server(self, server_id: int) -> None:
        self._agents.pop(server_id, None)
        self._detached.remove_server(server_id)

    def alive(self, server_id: int) -> bool:
        agent = self._agents.get(server_id)
        return agent is not None and not agent.done()

    def pid(self, server_id: int) -> int | None:
        """A task has none."""
        return self._detached.pid(server_id)

    async def aclose(self) -> None:
        for agent in self._agents.values():
            agent.cancel()
        if self._agents:
            await asyncio.wait(self._agents.values())
        await self._detached.aclose()

    async def _run(self, server_id: int) -> None:
        # Imported only here, as a cloudsim that boots processes does not need the agent's libraries.
        from hydracore.agent.agent import Agent  # noqa: PLC0415 - said above

        try:
            await Agent(self._disks / str(server_id)).run()
        except Exception:  # noqa: BLE001 - as a process would, it ends and leaves its reason in the log; cloudsim goes on
            _log.exception("inline_agent_failed", server_id=server_id)
