"""What integrations are yet to be told: on disk with what it tells of, until they have taken it."""

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

#: Notices kept for an integration that takes none; the oldest go first.
NOTICES_MAX = 1000


class Notice(NamedTuple):
    number: int
    content: str


class Notices:
    """`news` is set when there may be something to tell."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.news = asyncio.Event()
        self.news.set()

    async def next(self, integration: str) -> Notice | None:
        """What to tell this one next. Until it is done the answer is the same, unless too many have come since."""

        def work(db: sqlite3.Connection) -> Notice | None:
            row = db.execute(_SQL["next"], {"integration": integration}).fetchone()
            return None if row is None else Notice(*row)

        return await self._database.run_if_awaited(work)

    async def done(self, notice: Notice) -> None:
        """It was taken, or will not be."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["done"], {"id": notice.number})

        await self._database.run(work)

    def keep_only(self, integrations: Iterable[str]) -> None:
        """Nobody else is told anything any more."""
        names = msgspec.json.encode(list(integrations)).decode()

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["others"], {"integrations": names})

        self._database.submit(work)


def add_notices(db: sqlite3.Connection, contents: Mapping[str, str]) -> None:
    """Write down what each of these integrations is to be told; in the caller's transaction."""
    for integration, content in contents.items():
        db.execute(_SQL["add"], {"integration": integration, "content": content})
        db.execute(_SQL["trim"], {"integration": integration, "keep": NOTICES_MAX})
