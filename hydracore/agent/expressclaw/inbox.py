"""Keeps Telegram's updates on disk, from before Telegram forgets them until their answers are sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hydracore.agent.expressclaw.database import Database
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("inbox.sql"))


class StoredUpdate(NamedTuple):
    update_id: int
    content: str


class Inbox:
    """`bot_id` is the public part of a bot's token: updates are numbered by bot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def next_update(self, bot_id: str) -> int | None:
        """The offset of the next poll, which has Telegram forget all updates before it. None: nothing to forget."""

        def work(db: sqlite3.Connection) -> int | None:
            row = db.execute(_SQL["next_update"], {"bot_id": bot_id}).fetchone()
            return None if row is None else row[0]

        return await self._database.run_cancellable(work)

    async def store(self, bot_id: str, contents: Mapping[int, str], *, next_update: int | None) -> None:
        """Store these updates, and `next_update` as the offset of the next poll."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["set_next_update"], {"bot_id": bot_id, "next_update": next_update})
            rows = [{"bot_id": bot_id, "update_id": number, "content": content} for number, content in contents.items()]
            db.executemany(_SQL["add"], rows)

        await self._database.run(work)

    async def stored_updates(self, bot_id: str) -> list[StoredUpdate]:
        """The updates that wait for an answer, in order."""
        values = {"bot_id": bot_id}
        return await self._database.run_cancellable(
            lambda db: [StoredUpdate(*row) for row in db.execute(_SQL["stored_updates"], values)]
        )

    async def delete(self, bot_id: str, update_id: int) -> None:
        """Delete the update: it needs no answer any more, or its answer is about to be sent."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["delete"], {"bot_id": bot_id, "update_id": update_id})

        await self._database.run(work)
