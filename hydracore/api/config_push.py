"""Sends a new configuration to the agent. It is in the log already, and an agent that is away asks for it later."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple

import structlog

from events.lifecycle import DELETED, DELETING, ERROR, FAILED
from events.master_keys import MasterKeys
from events.state import Instance
from hydracore.agent.messages import Ignored
from hydracore.agent_client import AgentBadAnswer, AgentClient, AgentClientError
from hydracore.api.agent_link import address_of
from hydracore.api.runtime_document import RuntimeDocuments

#: The most seconds that an agent may take to apply a configuration. After that, the answer says that it is applied later.
PUSH_TIMEOUT_S: Final = 5.0

#: The most unused parts of a configuration that a message names.
IGNORED_SHOWN_MAX: Final = 5

#: Statuses in which no agent will ask for the configuration.
_WITHOUT_AGENT: Final = frozenset({FAILED, ERROR, DELETING, DELETED})

_log = structlog.get_logger(__name__)


class PushResult(NamedTuple):
    """Whether the agent runs with the configuration now, and a message about it."""

    applied: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class ConfigPusher:
    agent_client: AgentClient
    documents: RuntimeDocuments
    master_keys: MasterKeys

    async def push(self, state: Instance) -> PushResult:
        """Send the configuration of `state`. Failures of the agent are reported in the result and never raised."""
        address = address_of(state, master_keys=self.master_keys)
        if address is None:
            if state.status in _WITHOUT_AGENT:
                return PushResult(
                    applied=False, message=f"It is saved; the instance is {state.status} and runs nothing"
                )
            return PushResult(applied=False, message="The agent gets it when it starts")
        version = state.config.version
        try:
            running = await self.agent_client.put_config(
                address, version, await self.documents.build(state), timeout_s=PUSH_TIMEOUT_S
            )
        except AgentClientError as error:
            _log.warning("config_not_pushed", instance_id=str(state.id), version=version, reason=str(error))
            if isinstance(error, AgentBadAnswer) and error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                return PushResult(
                    applied=False, message=f"The agent cannot run with it: {error.detail or 'it gave no reason'}"
                )
            return PushResult(
                applied=False, message="The agent cannot be reached; it is applied when the agent next asks"
            )
        if running.config_version is None:
            return PushResult(
                applied=False, message="The agent has it; it is applied when the agent's runtime runs again"
            )
        if running.config_version < version:
            return PushResult(
                applied=False, message="The agent has not taken it yet; it is applied when the agent next asks"
            )
        if running.config_version > version:
            # A later change was faster, or the agent's configuration is from a history that a restore has lost. The
            # agent asks for the present one.
            return PushResult(
                applied=False,
                message=f"The agent runs with another version, {running.config_version}, and asks for the present one",
            )
        return PushResult(applied=True, message=f"The agent runs with it{_ignored_note(running.ignored)}")


def _ignored_note(ignored: tuple[Ignored, ...]) -> str:
    """The parts of the configuration that the agent does not use, in words. `/runtime` lists all of them."""
    if not ignored:
        return ""
    listed = "; ".join(f"{each.path} ({each.reason})" for each in ignored[:IGNORED_SHOWN_MAX])
    return f", but does not use {listed}" + ("; and others" if len(ignored) > IGNORED_SHOWN_MAX else "")
