"""How much of one kind of work this process has under way for each instance: no agent is to take the room of all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from hydracore.api.errors import AgentBusy


class UnderWay:
    """`kind`: what is counted, in the plural, as a caller is told of it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._of_each = Counter[UUID]()

    @contextmanager
    def one_more(self, instance_id: UUID, *, most: int) -> Generator[None]:
        """Meanwhile there is one more. Raises `AgentBusy` where the instance has `most` of them."""
        if self._of_each[instance_id] >= most:
            raise AgentBusy(f"The agent has too many {self._kind} at once; try again")
        self._of_each[instance_id] += 1
        try:
            yield
        finally:
            self._of_each[instance_id] -= 1
            if not self._of_each[instance_id]:
                del self._of_each[instance_id]
