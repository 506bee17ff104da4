"""`/v1/instances/{id}/updates/apply`: have the agent apply a pending configuration now, with a restart if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from uuid import UUID

from events.commands import AnyCommand, RecordUpdatesApplied, RecordUpdatesFailed, RequestUpdates
from events.master_keys import MasterKeys
from events.record import Origin
from events.state import Instance
from hydracore.agent.chat_messages import UpdatesApplied
from hydracore.agent_client import AgentBadAnswer, AgentClient, AgentClientError, AgentTimeout
from hydracore.api import use_schemas as s
from hydracore.api.agent_link import agent_errors_translated, require_address
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.errors import AgentFailed
from hydracore.api.operations import operation
from hydracore.api.runtime import ASK_TIMEOUT_S
from hydracore.api.runtime_document import RuntimeDocuments
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.clock import NowMs

#: The most seconds that the agent may take: it waits for open chats, up to a limit, and restarts its runtime.
APPLY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Updates:
    changes: Changes
    agent_client: AgentClient
    documents: RuntimeDocuments
    master_keys: MasterKeys
    now_ms: NowMs

    @operation(
        "POST",
        "/v1/instances/{instance_id}/updates/apply",
        "Apply updates",
        answer=s.ApplyUpdatesResponse,
        errors=(403, 404, 409, 502, 503, 504),
    )
    async def apply_updates(
        self, who: Principal, incoming: Incoming, instance_id: UUID, body: s.ApplyUpdates
    ) -> s.ApplyUpdatesResponse:
        """Without `force`, nothing happens if the agent already runs with the wanted configuration.

        The request is recorded in the log before the agent is called, and the outcome after that.
        """
        state = await self.changes.load(who, instance_id)
        address = require_address(state, master_keys=self.master_keys)
        version = state.config.version
        with agent_errors_translated():
            if not body.force:
                status = await self.agent_client.status(address, timeout_s=ASK_TIMEOUT_S)
                if status.config_version == version:
                    message = f"Nothing to apply: the agent already runs with version {version}"
                    return s.ApplyUpdatesResponse(instance_id=instance_id, message=message, status="up_to_date")
            runtime = await self.documents.build(state)
        context = RequestContext(who, incoming, instance_id)
        restart, intent = body.restart_agent, incoming.origin(who.actor)
        request = RequestUpdates(at_ms=self.now_ms(), config_version=version, restart=restart, forced=body.force)
        await self._record(context, request, intent)
        outcome = incoming.origin(who.actor, causation_id=intent.command_id)
        with agent_errors_translated():
            try:
                applied = await self.agent_client.apply_updates(
                    address, version, runtime, restart=restart, timeout_s=APPLY_TIMEOUT_S
                )
            except AgentClientError as error:
                await self._record(context, _failure(error, version, at_ms=self.now_ms()), outcome)
                if isinstance(error, AgentBadAnswer) and error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                    raise AgentFailed(
                        f"The agent cannot run with this configuration: {error.detail or 'it gave no reason'}"
                    ) from error
                raise
        result = RecordUpdatesApplied(
            at_ms=self.now_ms(),
            config_version=applied.config_version,
            restarted=applied.restarted,
            forced=body.force,
        )
        await self._record(context, result, outcome)
        return s.ApplyUpdatesResponse(instance_id=instance_id, message=_message(applied), status="applied")

    async def _record(self, context: RequestContext, command: AnyCommand, origin: Origin) -> None:
        """Append `command`, whatever the state of the instance is now."""

        async def at_any(_: Instance) -> AnyCommand:
            return command

        await self.changes.change(context, at_any, origin=origin)


def _failure(error: AgentClientError, version: int, *, at_ms: int) -> RecordUpdatesFailed:
    """What is known after the agent did not answer as agreed."""
    if isinstance(error, AgentBadAnswer) and HTTPStatus.BAD_REQUEST <= error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return RecordUpdatesFailed(at_ms=at_ms, config_version=version, code="agent_refused", nothing_done=True)
    code = "agent_timeout" if isinstance(error, AgentTimeout) else "agent_failed"
    return RecordUpdatesFailed(at_ms=at_ms, config_version=version, code=code)


def _message(applied: UpdatesApplied) -> str:
    message = f"The agent runs with version {applied.config_version}"
    if applied.error is not None:
        message += f", with an error ({applied.error.message})"
    if applied.restarted and applied.drained:
        return f"{message}; it was restarted after its open chats had ended"
    if applied.restarted:
        return f"{message}; it was restarted, and chats that did not end in time were cut off"
    return message
