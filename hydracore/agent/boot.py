"""One boot of the agent, under one boot id: enrol, get the secrets, run the runtime, serve the API, report.

booted -> enrolled -> secrets -> configured -> runtime_started -> healthy -> heartbeats for ever
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import cast
from uuid import UUID

from hydracore.agent import VERSION
from hydracore.agent import messages as m
from hydracore.agent.api import LAST_SEGMENT, AgentApi, Handler
from hydracore.agent.boot_file import BootFile
from hydracore.agent.callbacks import Callbacks
from hydracore.agent.chat_api import ChatApi
from hydracore.agent.configuration import Configuration
from hydracore.agent.control_plane import ControlPlane, Gone, retry_transient, retry_until_stored
from hydracore.agent.credentials import Credentials
from hydracore.agent.endpoints import Endpoints
from hydracore.agent.errors import StateDamaged
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.heartbeats import send_heartbeats
from hydracore.agent.identity import Identity
from hydracore.agent.runtime import RuntimeKind
from hydracore.agent.server import AgentServer
from hydracore.agent.spool import CallbackSpool
from hydracore.agent.state import StateDir
from hydracore.agent.supervisor import Supervisor
from hydracore.agent.usage import UsageSender

#: The longest that callbacks are held back until the agent is healthy. Those of a normal start then
#: travel in one request.
CALLBACKS_HELD_S = 1.0


class Boot:
    """Call `enrol` once, then `run` once. Both raise `Gone`, and `run` raises `StateDamaged`, too. `run` never returns.

    `uptime_s` returns the seconds since the process (or task) of this agent started.
    """

    def __init__(
        self,
        *,
        boot_file: BootFile,
        boot_id: UUID,
        identity: Identity,
        state: StateDir,
        spool: CallbackSpool,
        store: Store,
        control_plane: ControlPlane,
        runtimes: Mapping[str, RuntimeKind],
        uptime_s: Callable[[], float],
    ) -> None:
        self._boot_file = boot_file
        self._boot_id = boot_id
        self._state = state
        self._spool = spool
        self._control_plane = control_plane
        self._uptime_s = uptime_s
        self._healthy = asyncio.Event()
        self._callbacks = Callbacks(spool=spool, boot_id=boot_id, control_plane=control_plane)
        self._credentials = Credentials(
            boot_file=boot_file,
            boot_id=boot_id,
            identity=identity,
            state=state,
            control_plane=control_plane,
            on_renewed=self._on_secrets_renewed,
        )
        report = self._callbacks.report
        self._supervisor = Supervisor(runtimes=runtimes, report=report, monotonic=uptime_s)
        self._configuration = Configuration(
            state=state,
            boot_id=boot_id,
            control_plane=control_plane,
            configure=self._supervisor.configure,
            report=report,
        )
        self._ledger = store.ledger
        self._usage = UsageSender(store.ledger, state=state, control_plane=control_plane, boot_id=boot_id)
        self._server = AgentServer(AgentApi(self._routes(store), token=self._control_token), report=report)

    async def enrol(self) -> None:
        """Enrol with the control plane. Before it has accepted this agent, no runtime runs and no port is open.

        While the disk refuses, this waits: it may be full when a running agent's boot is superseded.
        """
        await retry_until_stored(lambda: self._spool.add_boot(self._boot_id))
        self._callbacks.enter_stage("booted", f"Agent {VERSION} booted")
        await self._credentials.enrol()
        await retry_until_stored(lambda: self._spool.mark_enrolled(self._boot_id))
        self._callbacks.enter_stage("enrolled", "Enrolled with the control plane")

    async def run(self) -> None:
        secrets = await retry_transient(self._credentials.load_or_fetch)
        self._callbacks.enter_stage("secrets", "Secrets are stored")
        self._configuration.start(secrets)
        if self._credentials.is_new:
            # New by what is on disk. But an earlier boot may have ended while it replaced its key: see `_on_secrets_renewed`.
            self._ledger.resend_last()
        self._server.listen_on(secrets.listen)
        self._callbacks.enter_stage("configured", f"Configuration {self._configuration.version} is in place")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._deliver())
                tasks.create_task(self._server.run())
                tasks.create_task(self._supervisor.run())
                tasks.create_task(self._report_healthy_and_heartbeat())
                tasks.create_task(self._configuration.fetch_when_behind(self._credentials))
                tasks.create_task(self._usage.deliver(self._credentials))
        except BaseExceptionGroup as group:
            # All tasks are over by now. A restart would not help against a damaged file, so that is raised first.
            damage = _find_state_damage(group)
            if damage is not None:
                raise damage from group
            # `Gone` is an answer of the control plane. Any other error beside it is a bug and must show.
            gone, others = group.split(Gone)
            if gone is None or others is not None:
                raise
            raise Gone("work", "410") from group

    def _routes(self, store: Store) -> Mapping[str, Mapping[str, Handler]]:
        agent = Endpoints(
            supervisor=self._supervisor,
            configuration=self._configuration,
            status=self._status,
            ledger=store.ledger,
        )
        chats = ChatApi(store.turns, open_chat=self._supervisor.open_chat)
        return {
            "/api/status": {"GET": agent.get_status},
            "/api/drain": {"POST": agent.drain},
            "/api/config": {"GET": agent.get_config, "PUT": agent.put_config},
            "/api/updates/apply": {"POST": agent.apply_updates},
            "/api/chat": {"POST": chats.chat},
            "/api/conversations": {"GET": chats.conversations},
            f"/api/conversations/{LAST_SEGMENT}": {"GET": chats.conversation},
        }

    def _on_secrets_renewed(self, secrets: m.Secrets) -> None:
        self._callbacks.report("info", "The agent key was replaced")
        self._configuration.adopt_renewed(secrets)
        # The old key may have been refused because the control plane was restored: then it has lost usage, too.
        self._ledger.resend_last()
        self._server.listen_on(secrets.listen)

    def _control_token(self) -> str:
        return self._credentials.current.control_token

    async def _deliver(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLBACKS_HELD_S):
                await self._healthy.wait()
        await self._callbacks.deliver(self._credentials)

    async def _report_healthy_and_heartbeat(self) -> None:
        await self._supervisor.wait_until_serving()
        self._callbacks.enter_stage("runtime_started", f"Runtime {self._supervisor.wanted_config.type} is running")
        await self._server.wait_until_listening()
        self._callbacks.enter_stage("healthy", "The agent listens on its address")
        self._healthy.set()
        wanted = self._configuration.check_wanted_version
        await send_heartbeats(self._credentials, self._control_plane, self._heartbeat, on_wanted_version=wanted)

    def _status(self) -> m.AgentStatus:
        supervisor = self._supervisor
        return m.AgentStatus(
            instance_id=self._boot_file.instance_id,
            attempt=self._boot_file.attempt,
            boot_id=self._boot_id,
            stage=self._callbacks.stage,
            healthy=supervisor.is_serving and self._server.is_listening,
            runtime=supervisor.wanted_config.type,
            uptime_seconds=int(self._uptime_s()),
            active_connections=supervisor.active_connections,
            versions=supervisor.versions,
            skills_loaded=supervisor.skills_loaded,
            config_version=supervisor.config_version,
            error=self._error,
            connections=dict(supervisor.connections),
            workflows_loaded=supervisor.workflows_loaded,
            ignored=supervisor.ignored,
        )

    def _heartbeat(self) -> m.Heartbeat:
        supervisor = self._supervisor
        return m.Heartbeat(
            boot_id=self._boot_id,
            uptime_seconds=int(self._uptime_s()),
            active_connections=supervisor.active_connections,
            versions=supervisor.versions,
            skills_loaded=supervisor.skills_loaded,
            config_version=supervisor.config_version,
            error=self._error,
        )

    @property
    def _error(self) -> m.ReportedError | None:
        """The error to report, if any. A disk that refuses comes first, as it may be the cause of the others."""
        refusal = self._state.find_write_failure()
        if refusal is not None:
            return m.ReportedError(code="disk_refuses", message=f"The server's disk refuses writes: {refusal.what}")
        return self._supervisor.error


def _find_state_damage(group: BaseExceptionGroup[BaseException]) -> StateDamaged | None:
    found: BaseException | None = group.subgroup(StateDamaged)
    while isinstance(found, BaseExceptionGroup):
        found = cast("BaseExceptionGroup[BaseException]", found).exceptions[0]
    return found if isinstance(found, StateDamaged) else None
