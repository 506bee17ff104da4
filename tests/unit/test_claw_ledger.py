"""Costs: what calls cost, what counts against a budget, and how usage is sent to the control plane."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from hydracore.agent.chats import BudgetSpent
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.document import ModelPolicy, Price, Spent
from hydracore.agent.expressclaw.ledger import (
    BATCH_ENTRIES_MAX,
    PRUNE_EVERY_BATCHES,
    Ledger,
    add_entries,
    current_spend,
)
from hydracore.agent.expressclaw.money import Spend, Tokens, cost_usd, require_budget
from hydracore.agent.expressclaw.times import utc_day
from hydracore.agent.messages import UsageEntry
from hydracore.money import decimal_text

#: 2026-11-23 12:00 UTC.
NOON_MS = 1_795_435_200_000
DAY_MS = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOON_MS


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Generator[Database]:
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database, clock: Clock) -> Ledger:
    return Ledger(database, now_ms=lambda: clock.now_ms)


def entry(cost: str, *, at_ms: int = NOON_MS) -> UsageEntry:
    return UsageEntry(
        at_ms=at_ms,
        model="m",
        prompt_tokens=1,
        completion_tokens=2,
        cost_usd=cost,
        end_user=None,
        channel="api",
        conversation_id="c",
    )


async def spend(database: Database, *costs: str, at_ms: int = NOON_MS) -> None:
    await database.run(lambda db: add_entries(db, [entry(cost, at_ms=at_ms) for cost in costs]))


async def spent(database: Database, reported: Spent | None = None, *, today: str = "2026-11-23") -> Spend:
    return await database.run(lambda db: current_spend(db, reported or Spent(), today=today))


async def deliver(ledger: Ledger) -> list[int]:
    """Send all batches; return their sizes."""
    sizes = []
    while (batch := await ledger.next_batch()) is not None:
        sizes.append(len(batch.entries))
        await ledger.mark_accepted(batch.seq)
    return sizes


def test_costs_are_exact_and_a_model_without_a_price_is_charged_at_the_highest_prices() -> None:
    prices = {
        "m": Price(input_usd_per_mtok=Decimal("0.15"), output_usd_per_mtok=Decimal("0.60")),
        "n": Price(input_usd_per_mtok=Decimal("0.20"), output_usd_per_mtok=Decimal("0.10")),
    }

    assert decimal_text(cost_usd("m", Tokens(1, 1), prices)) == "0.00000075"
    assert decimal_text(cost_usd("m", Tokens(2_000_000, 500_000), prices)) == "0.6"
    assert decimal_text(cost_usd("other", Tokens(1_000_000, 1_000_000), prices)) == "0.8"
    assert decimal_text(cost_usd("other", Tokens(5, 5), {})) == "0"
    assert decimal_text(Decimal("1E+3")) == "1000"


def test_days_begin_at_midnight_utc() -> None:
    assert [utc_day(NOON_MS + shift) for shift in (0, DAY_MS // 2 - 1, DAY_MS // 2)] == [
        "2026-11-23",
        "2026-11-23",
        "2026-11-24",
    ]


@pytest.mark.parametrize(
    ("policy", "refusal"),
    [
        (ModelPolicy(), None),
        (ModelPolicy(budget_daily_usd=Decimal("1.01"), budget_monthly_usd=Decimal("5.01")), None),
        (ModelPolicy(budget_daily_usd=Decimal(1)), "today"),
        (ModelPolicy(budget_monthly_usd=Decimal(5)), "this month"),
        (ModelPolicy(budget_daily_usd=Decimal(0)), "today"),
    ],
)
def test_a_budget_is_spent_once_spending_reaches_the_daily_or_monthly_limit(
    policy: ModelPolicy, refusal: str | None
) -> None:
    if refusal is None:
        require_budget(Spend(Decimal(1), Decimal(5)), policy)
    else:
        with pytest.raises(BudgetSpent, match=f"for {refusal} is spent"):
            require_budget(Spend(Decimal(1), Decimal(5)), policy)


async def test_spending_is_summed_by_day_and_month(database: Database) -> None:
    await spend(database, "0.1", "0.2")
    await spend(database, "4", at_ms=NOON_MS - DAY_MS)
    await spend(database, "8", at_ms=NOON_MS - 30 * DAY_MS)

    assert await spent(database) == (Decimal("0.3"), Decimal("4.3"))
    assert await spent(database, today="2026-11-24") == (Decimal(0), Decimal("4.3"))
    assert await spent(database, today="2026-12-01") == (Decimal(0), Decimal(0))


async def test_spending_not_delivered_before_a_configuration_is_added_to_its_figures(
    database: Database, ledger: Ledger
) -> None:
    await spend(database, "1")
    await deliver(ledger)
    await spend(database, "2")
    reported = Spent(day="2026-11-23", daily_usd=Decimal(10), month="2026-11", monthly_usd=Decimal(30))

    # It is unknown when these figures were made: our own sum may or may not be in them, so it is added.
    assert await spent(database, reported) == (Decimal(13), Decimal(33))
    ledger.set_spend_base("config-1")
    assert await spent(database, reported) == (Decimal(12), Decimal(32))
    await deliver(ledger)
    await spend(database, "4")
    # After a restart, the same configuration is no newer: its base stays.
    ledger.set_spend_base("config-1")
    assert await spent(database, reported) == (Decimal(16), Decimal(36))
    ledger.set_spend_base("config-2")
    assert await spent(database, reported) == (Decimal(14), Decimal(34))


async def test_current_spending_is_never_less_than_the_ledger_s_own_sum(database: Database, ledger: Ledger) -> None:
    await spend(database, "5")
    await deliver(ledger)
    ledger.set_spend_base("config-1")

    reported = Spent(day="2026-11-23", daily_usd=Decimal(1), month="2026-11", monthly_usd=Decimal(1))

    assert await spent(database, reported) == (Decimal(5), Decimal(5))


async def test_figures_of_an_earlier_day_or_month_do_not_count_towards_the_current_one(
    database: Database, ledger: Ledger
) -> None:
    await spend(database, "5")
    await deliver(ledger)
    ledger.set_spend_base("config-1")
    reported = Spent(day="2026-11-23", daily_usd=Decimal(7), month="2026-11", monthly_usd=Decimal(9))

    assert await spent(database, reported, today="2026-11-24") == (Decimal(0), Decimal(9))
    assert await spent(database, reported, today="2026-12-01") == (Decimal(0), Decimal(0))


async def test_batches_are_bounded_in_size_and_unchanged_until_they_are_accepted(
    database: Database, ledger: Ledger
) -> None:
    assert await ledger.next_batch() is None
    await spend(database, *["1"] * (BATCH_ENTRIES_MAX + 1))
    first = await ledger.next_batch()
    await spend(database, "2")

    assert first is not None
    assert (first.seq, len(first.entries)) == (1, BATCH_ENTRIES_MAX)
    assert await ledger.next_batch() == first
    assert await deliver(ledger) == [BATCH_ENTRIES_MAX, 2]
    assert await ledger.next_batch() is None


async def test_the_control_plane_can_ask_for_earlier_batches_but_not_for_ones_that_never_existed(
    database: Database, ledger: Ledger
) -> None:
    for cost in ("1", "2", "3"):
        await spend(database, cost)
        await deliver(ledger)

    assert await ledger.resend_from(2)
    batch = await ledger.next_batch()
    assert batch is not None
    assert (batch.seq, batch.entries[0].cost_usd) == (2, "2")
    assert await deliver(ledger) == [1, 1]
    assert [await ledger.resend_from(seq) for seq in (0, 5, 4)] == [False, False, True]


async def test_the_last_batch_is_sent_again_when_its_acceptance_is_unknown(database: Database, ledger: Ledger) -> None:
    ledger.resend_last()
    assert await ledger.next_batch() is None
    for cost in ("1", "2"):
        await spend(database, cost)
        await deliver(ledger)

    ledger.resend_last()
    assert await ledger.has_unsent()
    again = await ledger.next_batch()
    assert await ledger.resend_from(1)
    ledger.resend_last()
    first = await ledger.next_batch()

    assert again is not None
    assert first is not None
    assert (again.seq, first.seq, await deliver(ledger)) == (2, 1, [1, 1])


async def test_delivered_batches_are_deleted_once_all_their_entries_are_old(
    database: Database, ledger: Ledger, clock: Clock
) -> None:
    await spend(database, "1")
    await deliver(ledger)
    await spend(database, "1")
    clock.now_ms += 100 * DAY_MS
    await spend(database, "2", at_ms=clock.now_ms)
    await deliver(ledger)
    for _ in range(PRUNE_EVERY_BATCHES - 2):
        await spend(database, "3", at_ms=clock.now_ms)
        await deliver(ledger)

    # The second batch has an old entry and a new one.
    assert [await ledger.resend_from(seq) for seq in (1, 2)] == [False, True]
    batch = await ledger.next_batch()
    assert batch is not None
    assert [one.cost_usd for one in batch.entries] == ["1", "2"]


async def test_an_entry_dated_in_the_future_does_not_keep_old_batches_from_being_deleted(
    database: Database, ledger: Ledger, clock: Clock
) -> None:
    await spend(database, "1", at_ms=NOON_MS + 1000 * DAY_MS)
    await deliver(ledger)
    await spend(database, "2")
    await deliver(ledger)
    clock.now_ms += 100 * DAY_MS
    for _ in range(PRUNE_EVERY_BATCHES - 2):
        await spend(database, "3", at_ms=clock.now_ms)
        await deliver(ledger)

    assert [await ledger.resend_from(seq) for seq in (1, 2, 3)] == [False, False, True]


async def test_old_batches_that_are_requested_again_are_kept_until_they_are_delivered(
    database: Database, ledger: Ledger, clock: Clock
) -> None:
    for _ in range(PRUNE_EVERY_BATCHES + 1):
        await spend(database, "1")
        await deliver(ledger)
    clock.now_ms += 100 * DAY_MS
    await spend(database, "2", at_ms=clock.now_ms)
    await ledger.next_batch()
    await ledger.resend_from(PRUNE_EVERY_BATCHES)

    assert await deliver(ledger) == [1, 1, 1]
    assert [await ledger.resend_from(seq) for seq in (PRUNE_EVERY_BATCHES - 1, PRUNE_EVERY_BATCHES + 1)] == [
        False,
        True,
    ]


# --- the database ----------------------------------------------------------------------------------------------------


async def test_database_work_that_fails_is_rolled_back(database: Database) -> None:
    def work(db: sqlite3.Connection) -> None:
        add_entries(db, [entry("1")])
        raise BudgetSpent("no")

    with pytest.raises(BudgetSpent):
        await database.run(work)

    assert await spent(database) == (0, 0)


async def test_a_ledger_id_stays_the_same_for_its_file_and_differs_between_files(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "one", "two"):
        database = Database(tmp_path / name, new_id=uuid4)
        await spend(database, "1")
        batch = await Ledger(database, now_ms=lambda: NOON_MS).next_batch()
        assert batch is not None
        ids.append(batch.ledger_id)
        database.close()

    assert ids[0] == ids[1] != ids[2]


async def test_submitted_database_work_is_done_before_the_file_is_closed(tmp_path: Path) -> None:
    database = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    for _ in range(20):
        database.submit(lambda db: add_entries(db, [entry("1")]))
    database.close()

    again = Database(tmp_path / "chats.sqlite", new_id=uuid4)
    assert (await spent(again)).daily == 20
    again.close()
