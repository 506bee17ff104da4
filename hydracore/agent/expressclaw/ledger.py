"""The ledger of what model calls have cost: sums to check budgets with, and batches for the control plane."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import msgspec

from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.document import Document, Spent
from hydracore.agent.expressclaw.money import Spend, require_budget
from hydracore.agent.expressclaw.times import utc_day
from hydracore.agent.messages import UsageEntry
from hydracore.clock import NowMs
from hydracore.money import decimal_text
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("ledger.sql"))

#: The most entries per batch, which is one request to the control plane.
BATCH_ENTRIES_MAX = 100

#: Days that accepted batches are kept, because a control plane that was restored from a backup may ask for them again.
KEPT_DAYS = 62
#: Accepted batches between two deletions of old ones.
PRUNE_EVERY_BATCHES = 100


class Batch(NamedTuple):
    ledger_id: UUID
    seq: int
    entries: tuple[UsageEntry, ...]


class Ledger:
    """`entries_added` is set when there may be something to send."""

    def __init__(self, database: Database, *, now_ms: NowMs) -> None:
        self._database = database
        self._now_ms = now_ms
        self.entries_added = asyncio.Event()
        self.entries_added.set()
        #: Set, and replaced, when the control plane has one more batch.
        self._batch_accepted = asyncio.Event()

    async def next_batch(self) -> Batch | None:
        """The batch to send next, or None if there are no entries. It stays the same until it is accepted."""
        return await self._database.run(_next_batch)

    async def has_unsent(self) -> bool:
        """Whether there are entries that the control plane does not have."""
        return await self._database.run_cancellable(lambda db: db.execute(_SQL["has_unsent"]).fetchone()[0] == 1)

    async def wait_until_sent(self) -> None:
        """Wait until the control plane has all entries."""
        accepted = self._batch_accepted
        while await self.has_unsent():
            await accepted.wait()
            accepted = self._batch_accepted

    async def mark_accepted(self, seq: int) -> None:
        """Note that the control plane has this batch and all before it."""
        today = utc_day(self._now_ms())
        first_day = date.fromisoformat(today) - timedelta(days=KEPT_DAYS)

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["set_next_batch"], {"batch": seq + 1})
            if seq % PRUNE_EVERY_BATCHES == 0:
                db.execute(_SQL["prune"], {"first_day": first_day.isoformat(), "today": today})

        await self._database.run(work)
        self._batch_accepted.set()
        self._batch_accepted = asyncio.Event()

    async def resend_from(self, seq: int) -> bool:
        """Go back (or on) to `seq`, as the control plane asked. Returns False if it is neither there nor the next."""

        def work(db: sqlite3.Connection) -> bool:
            last = db.execute(_SQL["last_batch"]).fetchone()[0]
            if seq != last + 1 and not db.execute(_SQL["entries_of"], {"batch": seq}).fetchall():
                return False
            db.execute(_SQL["set_next_batch"], {"batch": seq})
            return True

        return await self._database.run(work)

    def resend_last(self) -> None:
        """Send the last batch again, as the control plane may have lost usage.

        The answer is that the batch is a duplicate, or that an earlier one is expected, from which all are sent again.
        """

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["resend_last"])

        self._database.submit(work)
        self.entries_added.set()

    async def check_budget(self, document: Document) -> None:
        """Raises `BudgetSpent` if no money is left for another call."""
        today = utc_day(self._now_ms())
        await self._database.run_cancellable(lambda db: check_budget(db, document, today=today))

    def set_spend_base(self, config: str) -> None:
        """Store the sums of the entries that the control plane has accepted so far, as those that its figures in the
        configuration with the digest `config` include. Does nothing if the base is that of this configuration already."""
        today = utc_day(self._now_ms())
        self._database.submit(lambda db: _set_spend_base(db, config, today))


def add_entries(db: sqlite3.Connection, entries: Iterable[UsageEntry]) -> None:
    """Insert entries and add them to the sums of their days, in the caller's transaction."""
    for entry in entries:
        day = utc_day(entry.at_ms)
        db.execute(_SQL["add_entry"], {**msgspec.structs.asdict(entry), "day": day})
        total = _amount(db.execute(_SQL["spend_of_day"], {"day": day}).fetchone()) + Decimal(entry.cost_usd)
        db.execute(_SQL["set_spend"], {"day": day, "cost_usd": decimal_text(total)})


def check_budget(db: sqlite3.Connection, document: Document, *, today: str) -> None:
    """Raises `BudgetSpent` if no money is left for another call."""
    require_budget(current_spend(db, document.spent, today=today), document.model_policy)


def current_spend(db: sqlite3.Connection, spent: Spent, *, today: str) -> Spend:
    """What has been spent in the present day and month, as far as this agent knows.

    The control plane's figures include what earlier servers of this instance have spent; our sums
    include what it does not know yet. So the result is its figure plus our entries that are not in
    the base (`set_spend_base`), and never less than our own sum.
    """
    month = today[:7]
    days = {day: Decimal(cost) for day, cost in db.execute(_SQL["spend_of_month"], {"month": month})}
    ours = Spend(days.get(today, Decimal(0)), sum(days.values(), Decimal(0)))
    base = db.execute(_SQL["spend_base"]).fetchone()
    _, base_day, base_daily, base_monthly = base if base is not None else ("", "", "0", "0")
    daily, monthly = ours
    if spent.day == today:
        known = Decimal(base_daily) if base_day == today else Decimal(0)
        daily = max(daily, spent.daily_usd + daily - known)
    if spent.month == month:
        known = Decimal(base_monthly) if base_day[:7] == month else Decimal(0)
        monthly = max(monthly, spent.monthly_usd + monthly - known)
    return Spend(daily, monthly)


def _set_spend_base(db: sqlite3.Connection, config: str, today: str) -> None:
    base = db.execute(_SQL["spend_base"]).fetchone()
    if base is not None and base[0] == config:
        return
    first_day = f"{today[:7]}-01"
    rows = db.execute(_SQL["sent_of_month"], {"first_day": first_day, "day": today}).fetchall()
    daily = sum((Decimal(cost) for day, cost in rows if day == today), Decimal(0))
    monthly = sum((Decimal(cost) for _, cost in rows), Decimal(0))
    figures = {"config": config, "day": today, "daily_usd": decimal_text(daily), "monthly_usd": decimal_text(monthly)}
    db.execute(_SQL["set_spend_base"], figures)


def _next_batch(db: sqlite3.Connection) -> Batch | None:
    ledger_id, seq = db.execute(_SQL["next_batch"]).fetchone()
    rows = db.execute(_SQL["entries_of"], {"batch": seq}).fetchall()
    if not rows:
        db.execute(_SQL["fill_batch"], {"batch": seq, "size": BATCH_ENTRIES_MAX})
        rows = db.execute(_SQL["entries_of"], {"batch": seq}).fetchall()
    if not rows:
        return None
    entries = tuple(
        msgspec.convert(dict(zip(UsageEntry.__struct_fields__, row, strict=True)), UsageEntry) for row in rows
    )
    return Batch(UUID(ledger_id), seq, entries)


def _amount(row: tuple[str] | None) -> Decimal:
    return Decimal(0) if row is None else Decimal(row[0])
