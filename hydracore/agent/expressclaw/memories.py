"""What messages mean, on disk beside them, so that each is asked about once."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.embedding_client import Vector
from hydracore.agent.expressclaw.ledger import add_entries
from hydracore.agent.expressclaw.memory import ChatMessage
from hydracore.agent.expressclaw.turns import OpenTurn
from hydracore.agent.messages import UsageEntry
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("memories.sql"))

#: How far back a conversation is looked through, in messages.
OLDER_MAX = 500


class Older(NamedTuple):
    """A message that is out of a model's sight; `vector` is None as long as it was not asked about."""

    message_id: int
    said: ChatMessage
    vector: Vector | None


class Memories:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def older(self, begun: OpenTurn, *, kept: int, model: str) -> list[Older]:
        """The messages before the `kept` latest ones, in order, with what they mean to this embedding model."""
        values = {
            "conversation_id": begun.conversation_id,
            "turn_id": begun.turn_id,
            "kept": kept,
            "limit": OLDER_MAX,
            "model": model,
        }
        rows = await self._database.run_if_awaited(lambda db: db.execute(_SQL["older"], values).fetchall())
        return [
            Older(message_id, ChatMessage(role, content), None if vector is None else array("f", vector))
            for message_id, role, content, vector in rows
        ]

    async def keep(self, model: str, vectors: Mapping[int, Vector], *, spent: UsageEntry) -> None:
        """What messages mean, by id, and what it has cost to learn that, in one transaction."""

        def work(db: sqlite3.Connection) -> None:
            rows = [{"message_id": key, "model": model, "vector": vector.tobytes()} for key, vector in vectors.items()]
            db.executemany(_SQL["keep"], rows)
            add_entries(db, [spent])

        await self._database.run(work)
