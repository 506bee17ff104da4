"""The models of an instance and its budget: its owner's choices, or else the catalogue's defaults."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import asdict

from events.state import Instance
from hydracore.catalogue import Catalogue
from projections.usage_queries import Spent


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A complete model policy. Budgets are in US dollars; None for no limit."""

    primary: str
    fallbacks: tuple[str, ...]
    temperature: float | None
    max_tokens: int | None
    embedding_model: str | None
    budget_daily_usd: Decimal | None
    budget_monthly_usd: Decimal | None

    def overspent(self, spent: Spent) -> str | None:
        """Which budget is used up, in words for the caller, or None."""
        if self.budget_daily_usd is not None and spent.daily_usd >= self.budget_daily_usd:
            return "The budget for today is spent"
        if self.budget_monthly_usd is not None and spent.monthly_usd >= self.budget_monthly_usd:
            return "The budget for this month is spent"
        return None

    @property
    def has_budget(self) -> bool:
        return self.budget_daily_usd is not None or self.budget_monthly_usd is not None


def model_choice(state: Instance, catalogue: Catalogue) -> ModelChoice:
    """The choice for `state`. The policy's temperature precedes the configuration's, and that precedes the default."""
    policy, defaults = state.config.model_policy, catalogue.model_policy
    temperatures = (policy.temperature, state.config.model_temperature, defaults.temperature)
    return ModelChoice(
        primary=policy.primary if policy.primary is not None else defaults.primary,
        fallbacks=policy.fallbacks if policy.fallbacks is not None else tuple(defaults.fallbacks),
        temperature=next((each for each in temperatures if each is not None), None),
        max_tokens=policy.max_tokens if policy.max_tokens is not None else defaults.max_tokens,
        embedding_model=policy.embedding_model,
        budget_daily_usd=_dollars(policy.budget_daily_usd),
        budget_monthly_usd=_dollars(policy.budget_monthly_usd),
    )


def policy_document(choice: ModelChoice) -> dict[str, Any]:
    """As callers see it. Budgets are numbers, as they were given."""
    return {name: float(value) if isinstance(value, Decimal) else value for name, value in asdict(choice).items()}


def unknown_models(choice: ModelChoice, catalogue: Catalogue) -> list[str]:
    """The models of a choice that the catalogue has no price for. They are used all the same."""
    named: Iterable[str | None] = (choice.primary, *choice.fallbacks, choice.embedding_model)
    return list(dict.fromkeys(name for name in named if name is not None and name not in catalogue.models))


def _dollars(amount: str | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)
