"""`/v1/instances/{id}/config`: the desired configuration, and the one that the agent reports to run with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET

from events.commands import ChangeConfig
from events.master_keys import MasterKeys
from events.state import Instance
from hydracore.agent_answers import MaskedConfig
from hydracore.agent_client import AgentClient, AgentClientError
from hydracore.api import use_schemas as s
from hydracore.api.agent_link import address_of
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.concurrency_limiter import ConcurrencyLimiter
from hydracore.api.config_push import ConfigPusher, PushResult
from hydracore.api.errors import AgentBusy, RequestInvalid
from hydracore.api.model_choice import model_choice, policy_document
from hydracore.api.operations import operation
from hydracore.api.preconditions import IfMatch
from hydracore.api.runtime import ASK_TIMEOUT_S
from hydracore.api.size_limits import BODY_BYTES, slug_texts
from hydracore.api.validation import Incoming
from hydracore.api.vault import Field, OpenedConfig, Vault
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.documents import MASK_UNMATCHED, is_mask, mask
from hydracore.problems import Problem

PATH: Final = "/v1/instances/{instance_id}/config"

#: How many requests for the running configuration one process sends to an instance's agent at a time.
READS_MAX: Final = 8

#: A bot token becomes a part of a URL at the agent, so it must not contain characters that could change the path.
_BOT_TOKEN: Final = re.compile(r"[A-Za-z0-9:_-]+")

#: Parts of the running configuration that belong to the installation, and are not shown to the owner.
_INSTALLATION_PARTS: Final = frozenset({"model", "prices"})

_SEALED: Final[tuple[Field, ...]] = ("system_prompt", "customer_facing_prompt", "telegram_bot_token")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    changes: Changes
    vault: Vault
    pusher: ConfigPusher
    agent_client: AgentClient
    catalogue: Catalogue
    master_keys: MasterKeys
    now_ms: NowMs
    limiter: ConcurrencyLimiter = field(default_factory=lambda: ConcurrencyLimiter("questions what it runs with"))

    @operation("GET", PATH, "Proxy get config", answer=s.RunningConfig, errors=(403, 404))
    async def get_config(self, who: Principal, instance_id: UUID) -> s.RunningConfig:
        state = await self.changes.load(who, instance_id)
        running = await self._read_running(state)
        if running is None:
            pushed = PushResult(applied=False, message="Desired configuration; no agent reports what it runs with")
        elif running.version is None:
            pushed = PushResult(applied=False, message="The agent's runtime does not run")
        elif running.version == state.config.version:
            pushed = PushResult(applied=True, message="The agent runs with it")
        else:
            pushed = PushResult(applied=False, message="The agent runs with another version and will ask for this one")
        config = await self._shown(state, pushed)
        return s.RunningConfig(**msgspec.structs.asdict(config), running=_without_installation_parts(running))

    @operation("POST", PATH, "Proxy update config", answer=s.Config, errors=(403, 404, 409, 412), body_bytes=BODY_BYTES)
    async def update_config(
        self, who: Principal, incoming: Incoming, instance_id: UUID, body: s.UpdateConfig, if_match: IfMatch = None
    ) -> s.Config:
        context = RequestContext(who, incoming, instance_id)
        outcome = await self.changes.change(context, lambda state: self._command(state, body), if_match=if_match)
        done = "Configuration updated" if outcome.events else "Nothing to change"
        # Even without a change, because the caller may repeat the request after the agent was away.
        pushed = await self.pusher.push(outcome.state)
        message = ". ".join([done, pushed.message, *self._notes(outcome.state, body)])
        return await self._shown(outcome.state, PushResult(pushed.applied, message))

    async def _command(self, state: Instance, body: s.UpdateConfig) -> ChangeConfig:
        """The command for `body` at `state`. Sealed fields are compared in clear, because each seal is different."""
        opened = await self.vault.open(state)
        changes: dict[str, Any] = {
            name: value
            for name in ("agent_name", "model_temperature", "recipe_id")
            if (value := getattr(body, name)) is not UNSET
        }
        if body.workflow_slugs is not UNSET:
            changes["workflow_slugs"] = slug_texts(body.workflow_slugs)
        for name in _SEALED:
            value, stored = getattr(body, name), getattr(opened, name)
            if value is UNSET or value == stored:
                continue
            if name == "telegram_bot_token" and value is not None:
                if stored is not None and value == mask(stored):
                    continue
                if is_mask(value):
                    raise RequestInvalid([Problem(("body", name), MASK_UNMATCHED, "value_error")])
            changes[name] = None if value is None else await self.vault.seal(state, name, value)
        return ChangeConfig(at_ms=self.now_ms(), **changes)

    def _notes(self, state: Instance, body: s.UpdateConfig) -> list[str]:
        """Notes on parts of the request whose effect the caller may not expect."""
        notes: list[str] = []
        error = self.catalogue.recipe_error(body.recipe_id) if isinstance(body.recipe_id, str) else None
        if error is not None:
            notes.append(f"Note on recipe_id: {error}")
        if isinstance(body.workflow_slugs, list):
            error = self.catalogue.workflow_error(body.workflow_slugs)
            if error is not None:
                notes.append(f"Note on workflow_slugs: {error}")
        of_policy = state.config.model_policy.temperature
        if isinstance(body.model_temperature, float) and of_policy is not None:
            notes.append(f"Note on model_temperature: the model policy's {of_policy:g} takes precedence")
        return notes

    async def _read_running(self, state: Instance) -> MaskedConfig | None:
        """What the agent runs with; None where it does not answer, or is asked too often at the same time."""
        address = address_of(state, master_keys=self.master_keys)
        if address is None:
            return None
        try:
            with self.limiter.slot(state.id, limit=READS_MAX):
                return await self.agent_client.get_config(address, timeout_s=ASK_TIMEOUT_S)
        except (AgentClientError, AgentBusy):
            return None

    async def _shown(self, state: Instance, pushed: PushResult) -> s.Config:
        opened: OpenedConfig = await self.vault.open(state)
        return s.Config(
            instance_id=state.id,
            agent_name=state.agent_name,
            customer_facing_prompt=opened.customer_facing_prompt,
            model_temperature=state.config.model_temperature,
            recipe_id=state.recipe_id,
            system_prompt=opened.system_prompt,
            telegram_bot_token=None if opened.telegram_bot_token is None else mask(opened.telegram_bot_token),
            workflow_slugs=state.workflow_slugs,
            model_policy=policy_document(model_choice(state, self.catalogue)),
            config_version=state.config.version,
            applied=pushed.applied,
            message=pushed.message,
        )


def _without_installation_parts(running: MaskedConfig | None) -> dict[str, Any] | None:
    if running is None:
        return None
    return {name: value for name, value in running.document.items() if name not in _INSTALLATION_PARTS}


def bot_token_error(text: str) -> str | None:
    """What is wrong with `text` as a bot token or as the mask of one, or None."""
    if is_mask(text) or _BOT_TOKEN.fullmatch(text):
        return None
    return "a bot token has letters, digits, ':', '_' and '-' only"
