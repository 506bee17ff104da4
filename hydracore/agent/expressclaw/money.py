"""What a call costs, and whether there is money left for another one. Decimal throughout; days and months are UTC."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from hydracore.agent.chats import BudgetSpent
from hydracore.agent.expressclaw.document import ModelPolicy, Price

_MTOK = Decimal(1_000_000)


class Tokens(NamedTuple):
    prompt: int
    completion: int


class Spend(NamedTuple):
    """US dollars of the present day and month."""

    daily: Decimal
    monthly: Decimal


def cost_usd(model: str, tokens: Tokens, prices: Mapping[str, Price]) -> Decimal:
    """The exact cost. A model without a price is charged the highest price of input and of output, so
    that it cannot get past a budget; the control plane warns when a policy names such a model. If
    there are no prices at all, the cost is 0."""
    price = prices.get(model)
    if price is None:
        price = Price(
            input_usd_per_mtok=max((each.input_usd_per_mtok for each in prices.values()), default=Decimal(0)),
            output_usd_per_mtok=max((each.output_usd_per_mtok for each in prices.values()), default=Decimal(0)),
        )
    return (tokens.prompt * price.input_usd_per_mtok + tokens.completion * price.output_usd_per_mtok) / _MTOK


def require_budget(spend: Spend, policy: ModelPolicy) -> None:
    """Raises `BudgetSpent` once a budget is used up. Calls under way do not count, as their cost is not known yet."""
    if policy.budget_daily_usd is not None and spend.daily >= policy.budget_daily_usd:
        raise BudgetSpent("The budget for today is spent")
    if policy.budget_monthly_usd is not None and spend.monthly >= policy.budget_monthly_usd:
        raise BudgetSpent("The budget for this month is spent")
