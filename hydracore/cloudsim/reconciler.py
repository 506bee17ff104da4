"""Carries out servers' actions, from `initializing` to `running` to `deleting`, and starts and stops their agents.

What is to be done follows from the stored record alone, so a restarted cloudsim goes on where the killed one was.
Each server has at most one task. A new action for a server replaces its task, which is safe for the same reason.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import structlog

from hydracore.cloudsim.boot import Booter
from hydracore.cloudsim.disk import AGENT_LOG, UserDataError, has_agent, remove_disk, write_disk
from hydracore.cloudsim.records import ServerRecord
from hydracore.cloudsim.store import Store
from hydracore.log_files import rotate_periodically

_log = structlog.get_logger(__name__)

#: The action that kills the agent without a grace, and those that restart it.
POWER_OFF_COMMAND: Final = "stop_server"
RESTART_COMMANDS: Final = frozenset({"reboot_server", "reset_server"})

#: Seconds before a failed task is tried again: doubling from the first to the longest.
RETRY_S_FIRST: Final = 0.2
RETRY_S_MAX: Final = 10.0


class ServerReconciler:
    """`disks` holds the servers' folders.

    `action_delay_s` is how long an action takes before it shows any effect, `stop_grace_s` how long an agent may take to end
    when it is asked to.
    """

    def __init__(
        self, store: Store, booter: Booter, *, disks: Path, action_delay_s: float, stop_grace_s: float
    ) -> None:
        self._store = store
        self._booter = booter
        self._disks = disks
        self._action_delay_s = action_delay_s
        self._stop_grace_s = stop_grace_s
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._log_trimmer: asyncio.Task[None] | None = None
        self._stopping = False

    async def open(self) -> None:
        """Start, and go on with the work on every server that exists."""
        self._disks.mkdir(mode=0o700, exist_ok=True)
        await self._booter.open()
        self._log_trimmer = asyncio.create_task(rotate_periodically(self._log_paths))
        for server in self._store.servers():
            self.schedule_reconcile(server.id)

    def schedule_reconcile(self, server_id: int) -> None:
        """Start a task that does what the server's record requires. Call it whenever the record has changed."""
        self._replace_task(server_id, lambda: self._reconcile(server_id))

    async def vanish(self, server_id: int) -> None:
        """Remove the server without an action, as if its disk had failed. Returns when it is gone."""
        await asyncio.wait([self._replace_task(server_id, lambda: self._remove(server_id, grace_s=0.0))])

    async def kill_agent(self, server_id: int) -> bool:
        """Kill the agent only. Returns whether there was one. A reboot, or cloudsim's next start, boots it again."""
        return await self._booter.stop(server_id, grace_s=0.0)

    async def stop_agents(self) -> int:
        """Stop all agents, and boot none from now on. Returns how many there were. The servers are kept."""
        self._stopping = True
        await self._cancel_tasks()
        servers = self._store.servers()
        stopped = await asyncio.gather(
            *(self._booter.stop(server.id, grace_s=self._stop_grace_s) for server in servers)
        )
        # The tasks of actions under way were cancelled, too. These actions are finished now.
        for server in servers:
            if server.locked:
                self.schedule_reconcile(server.id)
        return sum(stopped)

    def alive(self, server_id: int) -> bool:
        return self._booter.alive(server_id)

    def pid(self, server_id: int) -> int | None:
        return self._booter.pid(server_id)

    async def aclose(self) -> None:
        if self._log_trimmer:
            self._log_trimmer.cancel()
        await self._cancel_tasks()
        await self._booter.aclose()

    def _log_paths(self) -> list[Path]:
        return [self._disks / str(server.id) / AGENT_LOG for server in self._store.servers()]

    # One server

    async def _reconcile(self, server_id: int) -> None:
        server = self._store.server(server_id)
        if server is None:
            return
        if server.locked:
            await asyncio.sleep(self._action_delay_s)
            await self._carry_out_actions(server)
            server = self._store.server(server_id)
        if server is not None and server.status == "running":
            await self._boot(server)

    async def _carry_out_actions(self, server: ServerRecord) -> None:
        """Carry out the server's running actions, and end them."""
        running = [action for action in self._store.server_actions(server.id) if action.status == "running"]
        commands = {action.command for action in running}
        failing = any(action.fail_with is not None for action in running)
        if server.status == "initializing":
            starts = "start_server" in commands and not failing
            self._store.finish_actions(server.id, status="running" if starts else "off")
        elif server.status == "deleting":
            await self._remove(server.id, grace_s=self._stop_grace_s)
        elif server.status == "starting":
            self._store.finish_actions(server.id, status="running")
        elif server.status == "stopping":
            await self._booter.stop(server.id, grace_s=0.0 if POWER_OFF_COMMAND in commands else self._stop_grace_s)
            self._store.finish_actions(server.id, status="off")
        else:
            if commands & RESTART_COMMANDS and not failing:
                await self._booter.stop(server.id, grace_s=self._stop_grace_s)
            self._store.finish_actions(server.id, status=None)

    async def _boot(self, server: ServerRecord) -> None:
        if server.boot_dead or self._stopping:
            return
        root = self._disks / str(server.id)
        if not server.disk_written:
            await asyncio.sleep(server.boot_delay_s)
            write_disk(root, self._store.user_data(server.id))
            self._store.set_disk_written(server.id)
        if has_agent(root):
            await self._booter.start(server.id)

    async def _remove(self, server_id: int, *, grace_s: float) -> None:
        await self._booter.stop(server_id, grace_s=grace_s)
        root = self._disks / str(server_id)
        if root.exists():
            await asyncio.to_thread(remove_disk, root)
        self._booter.remove_server(server_id)
        self._store.mark_deleted(server_id)

    # Tasks

    def _replace_task(self, server_id: int, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        previous = self._tasks.get(server_id)
        if previous is not None:
            previous.cancel()
        task = self._tasks[server_id] = asyncio.create_task(self._run_until_done(server_id, previous, work))
        return task

    async def _run_until_done(
        self, server_id: int, previous: asyncio.Task[None] | None, work: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        try:
            if previous is not None:
                await asyncio.wait([previous])
            retry_s = RETRY_S_FIRST
            # Repeated, as a server is locked as long as an action is running, and could never be used again.
            while not await self._try_once(server_id, work):
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
        finally:
            if self._tasks.get(server_id) is asyncio.current_task():
                del self._tasks[server_id]

    async def _try_once(self, server_id: int, work: Callable[[], Coroutine[None, None, None]]) -> bool:
        """Do `work` once. Returns False if it failed and may succeed later. A failure does not affect other servers."""
        try:
            await work()
        except UserDataError as error:
            _log.warning("user_data_unusable", server_id=server_id, reason=str(error))
        except Exception:  # noqa: BLE001 - whatever it is: a full disk, a process that does not end
            _log.exception("server_stuck", server_id=server_id)
            return False
        return True

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
