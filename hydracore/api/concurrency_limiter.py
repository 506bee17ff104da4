"""Limits work in progress per instance, so that one agent cannot use up what all others need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from hydracore.api.errors import AgentBusy


class ConcurrencyLimiter:
    """`kind`: what is counted, in the plural, for messages to callers."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._counts = Counter[UUID]()

    @contextmanager
    def slot(self, instance_id: UUID, *, limit: int) -> Generator[None]:
        """Count one more within the context. Raises `AgentBusy` where the instance already has `limit`."""
        if self._counts[instance_id] >= limit:
            raise AgentBusy(f"The agent has too many {self._kind} at once; try again")
        self._counts[instance_id] += 1
        try:
            yield
        finally:
            self._counts[instance_id] -= 1
            if not self._counts[instance_id]:
                del self._counts[instance_id]
