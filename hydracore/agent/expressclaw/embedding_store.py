"""Keeps the embeddings of messages on disk, so that each message is embedded once."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hydracore.agent.expressclaw.context_window import ChatMessage
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.embedding_client import Vector
from hydracore.agent.expressclaw.ledger import add_entries
from hydracore.agent.expressclaw.turns import OpenTurn
from hydracore.agent.messages import UsageEntry
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("embedding_store.sql"))

#: The most older messages of a conversation that are looked through.
OLDER_MESSAGES_MAX = 500


class OlderMessage(NamedTuple):
    """A message that is older than those that are sent in any case. `vector`: its embedding, if there is one."""

    message_id: int
    message: ChatMessage
    vector: Vector | None


class EmbeddingStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def older_messages(self, open_turn: OpenTurn, *, kept: int, model: str) -> list[OlderMessage]:
        """The messages before the `kept` latest ones, at most `OLDER_MESSAGES_MAX`, in order, with embeddings by this model."""
        values = {
            "conversation_id": open_turn.conversation_id,
            "turn_id": open_turn.turn_id,
            "kept": kept,
            "limit": OLDER_MESSAGES_MAX,
            "model": model,
        }
        rows = await self._database.run_cancellable(lambda db: db.execute(_SQL["older_messages"], values).fetchall())
        return [
            OlderMessage(message_id, ChatMessage(role, content), None if vector is None else array("f", vector))
            for message_id, role, content, vector in rows
        ]

    async def store(self, model: str, vectors: Mapping[int, Vector], *, spent: UsageEntry) -> None:
        """Store embeddings, by message id, and their cost, in one transaction."""

        def work(db: sqlite3.Connection) -> None:
            rows = [{"message_id": key, "model": model, "vector": vector.tobytes()} for key, vector in vectors.items()]
            db.executemany(_SQL["store"], rows)
            add_entries(db, [spent])

        await self._database.run(work)
