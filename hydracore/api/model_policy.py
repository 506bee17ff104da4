"""`/v1/instances/{id}/model-policy`: which models the agent asks, how, and what it may spend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from msgspec import UNSET

from events.commands import ChangeModelPolicy
from events.state import Instance
from hydracore.api import use_schemas as s
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.config_push import ConfigPusher
from hydracore.api.model_choice import model_choice, policy_document, unknown_models
from hydracore.api.operations import operation
from hydracore.api.preconditions import IfMatch
from hydracore.api.validation import Incoming
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.money import number_text


@dataclass(frozen=True, kw_only=True)
class ModelPolicies:
    changes: Changes
    pusher: ConfigPusher
    catalogue: Catalogue
    now_ms: NowMs

    @operation(
        "PATCH",
        "/v1/instances/{instance_id}/model-policy",
        "Update model policy",
        answer=s.ModelPolicyResponse,
        errors=(403, 404, 409, 412),
    )
    async def update_model_policy(
        self, who: Principal, incoming: Incoming, instance_id: UUID, body: s.UpdateModelPolicy, if_match: IfMatch = None
    ) -> s.ModelPolicyResponse:
        async def command(_: Instance) -> ChangeModelPolicy:
            return ChangeModelPolicy(at_ms=self.now_ms(), **_changes(body))

        outcome = await self.changes.change(RequestContext(who, incoming, instance_id), command, if_match=if_match)
        done = "Model policy updated" if outcome.events else "Nothing to change"
        pushed = await self.pusher.push(outcome.state)
        choice = model_choice(outcome.state, self.catalogue)
        warnings = [
            f"Warning: {name} is not in the catalogue: it is metered at the catalogue's highest prices"
            for name in unknown_models(choice, self.catalogue)
        ]
        return s.ModelPolicyResponse(
            instance_id=instance_id,
            message=". ".join([done, pushed.message, *warnings]),
            model_policy=policy_document(choice),
            config_version=outcome.state.config.version,
        )


def _changes(body: s.UpdateModelPolicy) -> dict[str, Any]:
    """The given fields in the form of the write side: budgets are decimal texts."""
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    changes = {name: value for name, value in given.items() if value is not UNSET}
    for name in ("budget_daily_usd", "budget_monthly_usd"):
        if changes.get(name) is not None:
            changes[name] = number_text(changes[name])
    if changes.get("fallbacks") is not None:
        changes["fallbacks"] = tuple(changes["fallbacks"])
    return changes
