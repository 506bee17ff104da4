"""All that the runtime keeps on disk, in one SQLite file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.embedding_store import EmbeddingStore
from hydracore.agent.expressclaw.inbox import Inbox
from hydracore.agent.expressclaw.ledger import Ledger
from hydracore.agent.expressclaw.notices import Notices
from hydracore.agent.expressclaw.turns import Turns
from hydracore.clock import NowMs

#: Below the agent's state directory.
STORE_FILE = "chats.sqlite"


class Store:
    """It outlives every run of the runtime. `new_id` returns a new UUID."""

    def __init__(self, path: Path, *, now_ms: NowMs, new_id: Callable[[], UUID]) -> None:
        self._database = Database(path, new_id=new_id)
        self.now_ms = now_ms
        self.new_id = new_id
        self.turns = Turns(self._database, now_ms=now_ms)
        self.ledger = Ledger(self._database, now_ms=now_ms)
        self.inbox = Inbox(self._database)
        self.notices = Notices(self._database)
        self.embeddings = EmbeddingStore(self._database)

    def close(self) -> None:
        """Finish all work that was given, and close the file."""
        self._database.close()
