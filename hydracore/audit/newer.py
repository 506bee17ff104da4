"""What only a newer HydraCore can read, as there may be in a rolling deploy: no finding, and nothing that passes in silence."""

from __future__ import annotations

from typing import NamedTuple

from events.errors import EventUnreadable
from events.finding import Note


class Newer(NamedTuple):
    """An event in a lane: what is made of it was not compared."""

    lane: int
    type: str
    schema_version: int

    @property
    def note(self) -> Note:
        return Note(
            f"Version {self.schema_version} of event {self.type} was written by a newer HydraCore: rows of instances that have such "
            "events, and sums over lanes that have them, were not compared"
        )


def newer(error: Exception, lane: int) -> Newer | None:
    """What broke a fold, if it is no more than that."""
    if isinstance(error, EventUnreadable) and error.is_newer:
        return Newer(lane, error.tag, error.schema_version)
    return None
