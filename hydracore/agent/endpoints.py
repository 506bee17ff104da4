"""The agent's HTTP endpoints except chats: status, drain, configuration, updates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from hydracore.agent import messages as m
from hydracore.agent.api import Request, Response
from hydracore.agent.chat_api import read_body
from hydracore.agent.chat_messages import PushedConfig, RunningConfig, Updates, UpdatesApplied
from hydracore.agent.chats import BadRequest
from hydracore.agent.configuration import Configuration
from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.expressclaw.ledger import Ledger
from hydracore.agent.supervisor import Supervisor

#: The longest that a restart of the runtime waits for the open chats.
RESTART_DRAIN_S: Final = 10.0

#: The longest that a drain with `cut` waits for the open chats to end and the control plane to have all usage.
INTERRUPT_TIMEOUT_S: Final = 4.0


class Endpoints:
    """`status` returns the agent's present status."""

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        configuration: Configuration,
        status: Callable[[], m.AgentStatus],
        ledger: Ledger,
    ) -> None:
        self._supervisor = supervisor
        self._configuration = configuration
        self._status = status
        self._ledger = ledger
        self._restarting: asyncio.Task[bool] | None = None

    async def get_status(self, _request: Request) -> Response:
        return Response(200, self._status())

    async def drain(self, request: Request) -> Response:
        if request.body and read_body(request, m.Drain).cut:
            unsent = not await self._interrupt_and_send_usage()
            return Response(200, m.Drained(active_connections=self._supervisor.active_connections, usage_unsent=unsent))
        # Counted before the ledger is read, so that no usage is missed: a chat's cost is in it before the chat is over.
        active = self._supervisor.drain()
        return Response(200, m.Drained(active_connections=active, usage_unsent=await self._ledger.has_unsent()))

    async def _interrupt_and_send_usage(self) -> bool:
        """End the open chats, and have their usage sent. Returns whether the control plane has all usage now.

        Returns False after `INTERRUPT_TIMEOUT_S`. Chats that take longer end after that, as all were told to end.
        """
        try:
            async with asyncio.timeout(INTERRUPT_TIMEOUT_S):
                await self._supervisor.interrupt_chats()
                await self._ledger.wait_until_sent()
        except TimeoutError:
            # The ledger is not asked once more: perhaps it took so long because the disk is stuck.
            return False
        return True

    async def get_config(self, _request: Request) -> Response:
        return Response(
            200, {**self._configuration.masked_document(), "config_version": self._supervisor.config_version}
        )

    async def put_config(self, request: Request) -> Response:
        self._adopt(read_body(request, PushedConfig))
        return Response(200, RunningConfig(self._supervisor.config_version, self._supervisor.ignored))

    async def apply_updates(self, request: Request) -> Response:
        updates = read_body(request, Updates)
        version = self._adopt(updates)
        drained = await self._restart() if updates.restart else True
        return Response(
            200,
            UpdatesApplied(
                config_version=version,
                restarted=updates.restart,
                drained=drained,
                skills_loaded=self._supervisor.skills_loaded,
                error=self._supervisor.error,
            ),
        )

    def _adopt(self, config: PushedConfig | Updates) -> int:
        """Raises `BadRequest`."""
        try:
            return self._configuration.adopt(config.config_version, config.runtime)
        except RuntimeFailed as failure:
            raise BadRequest(failure.message) from None

    async def _restart(self) -> bool:
        """Restart the runtime. Returns whether no chat was cut short.

        Callers at the same time share one restart, which goes on if they disconnect.
        """
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._supervisor.restart(drain_s=RESTART_DRAIN_S))
        return await asyncio.shield(self._restarting)
