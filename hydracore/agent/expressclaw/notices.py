"""Notices for integrations: stored together with the answer that they tell of, and kept until they are delivered."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from hydracore.agent.expressclaw.database import Database
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("notices.sql"))

#: The most notices kept per integration. Beyond that, the oldest are deleted.
NOTICES_MAX = 1000


class Notice(NamedTuple):
    number: int
    content: str


class Notices:
    """`notices_added` is set when there may be something to deliver."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.notices_added = asyncio.Event()
        self.notices_added.set()

    async def oldest(self, integration: str) -> Notice | None:
        """The oldest notice for this integration, or None. It stays the same until it is deleted or trimmed."""

        def work(db: sqlite3.Connection) -> Notice | None:
            row = db.execute(_SQL["oldest"], {"integration": integration}).fetchone()
            return None if row is None else Notice(*row)

        return await self._database.run_cancellable(work)

    async def delete(self, notice: Notice) -> None:
        """Delete a notice that was delivered."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["delete"], {"id": notice.number})

        await self._database.run(work)

    def delete_all_except(self, integrations: Iterable[str]) -> None:
        """Delete the notices for all other integrations."""
        names = msgspec.json.encode(list(integrations)).decode()

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["delete_others"], {"integrations": names})

        self._database.submit(work)


def add_notices(db: sqlite3.Connection, contents: Mapping[str, str]) -> None:
    """Insert a notice for each of these integrations, in the caller's transaction."""
    for integration, content in contents.items():
        db.execute(_SQL["add"], {"integration": integration, "content": content})
        db.execute(_SQL["trim"], {"integration": integration, "keep": NOTICES_MAX})
