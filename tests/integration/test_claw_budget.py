"""Budgets count what was metered, here and on other servers. Concurrent chats overspend by at most their own cost."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hydracore.agent.expressclaw.store import STORE_FILE
from hydracore.agent.state import STATE_DIR
from tests.claw_fixtures import Claw, claw_fixture, control_plane_fixture, document, modelsim_fixture
from tests.fake_control_plane import FakeControlPlane
from tests.modelsim_fixtures import ModelSim
from tests.waiting import until

__all__ = ["claw_fixture", "control_plane_fixture", "modelsim_fixture"]


def budgeted(modelsim: ModelSim, *, spent: Any = None, **budget: str) -> dict[str, Any]:
    changed = document(modelsim)
    changed["model_policy"] = {**changed["model_policy"], **budget}
    if spent is not None:
        today = datetime.now(UTC)
        changed["spent"] = {"day": f"{today:%Y-%m-%d}", "month": f"{today:%Y-%m}", **spent}
    return changed


async def push(claw: Claw, version: int, runtime: dict[str, Any]) -> None:
    answer = await claw.http.put("/api/config", json={"config_version": version, "runtime": runtime})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("period", ["daily", "monthly"])
async def test_chats_are_refused_once_the_budget_is_spent(claw: Claw, modelsim: ModelSim, period: str) -> None:
    cost = Decimal((await claw.chat("Hello"))["usage"]["cost_usd"])
    await push(claw, 4, budgeted(modelsim, **{f"budget_{period}_usd": str(cost * 2)}))

    await claw.chat("Hello", key="k")
    answer = await claw.ask("Hello", "over")

    assert answer.status_code == 402
    assert answer.json()["code"] == "budget_spent"
    assert len(await modelsim.requests()) == 2
    # An answer that was paid for can still be fetched, and the refused chat left nothing.
    await claw.chat("Hello", key="k")
    assert (await claw.http.get("/api/conversations/over")).status_code == 404
    await push(claw, 5, budgeted(modelsim, **{f"budget_{period}_usd": str(cost * 3)}))
    await claw.chat("Hello")


async def test_a_model_without_a_price_counts_against_the_budget(claw: Claw, modelsim: ModelSim) -> None:
    runtime = budgeted(modelsim, budget_daily_usd="0.00000001")
    runtime["model_policy"] |= {"primary": "homegrown-1", "fallbacks": []}
    await push(claw, 4, runtime)

    assert (await claw.chat("Hello"))["model"] == "homegrown-1"

    assert await claw.refused("Hello") == (402, "budget_spent")


async def test_a_caller_who_leaves_before_the_first_word_has_spent_from_the_budget(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    await push(claw, 4, budgeted(modelsim, budget_daily_usd="0.00000001"))
    await modelsim.fault("hang")

    asking = asyncio.create_task(claw.ask("Hello " * 100))
    await modelsim.until_requests(1, ended="open")
    asking.cancel()
    await control_plane.until(lambda: len(control_plane.metered()) == 1)

    assert await claw.refused("Hello") == (402, "budget_spent")
    (entry,) = control_plane.metered()
    assert (entry["model"], entry["completion_tokens"]) == ("first", 0)
    assert entry["prompt_tokens"] >= 150, "an estimate: four characters a token"


@pytest.mark.parametrize(("fault", "status"), [({"kind": "cut", "after_tokens": 2}, 402), ({"kind": "status"}, 200)])
async def test_no_fallback_is_asked_once_the_model_before_it_has_spent_the_budget(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, fault: dict[str, Any], status: int
) -> None:
    await push(claw, 4, budgeted(modelsim, budget_daily_usd="0.00000001"))
    await modelsim.fault(**fault, model="first")

    answer = await claw.ask("Hello", "c-1")

    assert answer.status_code == status
    asked = [request["model"] for request in await modelsim.requests()]
    await control_plane.until(lambda: len(control_plane.metered()) == 1)
    (entry,) = control_plane.metered()
    if status == 402:
        assert answer.json()["code"] == "budget_spent"
        assert (asked, entry["model"]) == (["first"], "first")
        assert await claw.conversation("c-1") == [("user", "Hello")]
    else:
        # A call that was refused at once is free.
        assert (asked, entry["model"]) == (["first", "second"], "second")


async def test_a_budget_of_zero_allows_no_chat(claw: Claw, modelsim: ModelSim) -> None:
    await push(claw, 4, budgeted(modelsim, budget_daily_usd="0"))

    assert await claw.refused("Hello") == (402, "budget_spent")
    assert await modelsim.requests() == []


async def test_concurrent_chats_overspend_a_budget_by_at_most_the_chats_in_progress(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim
) -> None:
    cost = Decimal((await claw.chat("Hello"))["usage"]["cost_usd"])
    at_once = 4
    await push(claw, 4, budgeted(modelsim, budget_daily_usd=str(cost * 10)))
    free = asyncio.Semaphore(at_once)

    async def one() -> int:
        async with free:
            return (await claw.ask("Hello")).status_code

    statuses = await asyncio.gather(*(one() for _ in range(40)))

    answered = statuses.count(200) + 1
    assert set(statuses) == {200, 402}
    assert 10 <= answered < 10 + at_once
    await control_plane.until(lambda: len(control_plane.metered()) == answered)
    total = sum(Decimal(entry["cost_usd"]) for entry in control_plane.metered())
    assert total == cost * answered


async def test_spending_of_other_servers_counts_and_spending_already_reported_counts_once(
    control_plane: FakeControlPlane, claw: Claw, modelsim: ModelSim, tmp_path: Path
) -> None:
    cost = Decimal((await claw.chat("Hello"))["usage"]["cost_usd"])
    await until(lambda: next_batch(tmp_path / "vps" / STATE_DIR) == 2)
    assert len(control_plane.metered()) == 1
    # Nine elsewhere and our one, as the control plane knows: there is room for two more.
    spent = {"daily_usd": str(cost * 10), "monthly_usd": str(cost * 10)}
    runtime = budgeted(modelsim, spent=spent, budget_monthly_usd=str(cost * 12))
    await push(claw, 4, runtime)
    await push(claw, 4, runtime)

    statuses = [(await claw.ask("Hello")).status_code for _ in range(4)]

    assert statuses == [200, 200, 402, 402]


def next_batch(state: Path) -> int:
    """The number of the batch that the ledger sends next. The control plane is known to have all before it."""
    with closing(sqlite3.connect(state / STORE_FILE)) as db:
        return db.execute("SELECT next_batch FROM ledger").fetchone()[0]


async def test_spending_of_another_day_or_month_does_not_count(claw: Claw, modelsim: ModelSim) -> None:
    runtime = budgeted(modelsim, budget_daily_usd="5", budget_monthly_usd="5")
    runtime["spent"] = {"day": "2001-01-01", "daily_usd": "9", "month": "2001-01", "monthly_usd": "9"}
    await push(claw, 4, runtime)

    assert (await claw.ask("Hello")).status_code == 200
