"""Events that only a newer HydraCore can read, as in a rolling deploy: a note in the report, not a finding."""

from __future__ import annotations

from typing import NamedTuple

from events.errors import EventUnreadable
from events.verification_findings import Note


class NewerEvent(NamedTuple):
    """An event of a newer version in a lane: rows that depend on it were not compared."""

    lane: int
    type: str
    schema_version: int

    @property
    def note(self) -> Note:
        return Note(
            f"Version {self.schema_version} of event {self.type} was written by a newer HydraCore: rows of instances that have such "
            "events, and sums over lanes that have them, were not compared"
        )


def newer_event(error: Exception, lane: int) -> NewerEvent | None:
    """The event that broke a fold, if `error` says that a newer release has written it; otherwise None."""
    if isinstance(error, EventUnreadable) and error.is_newer:
        return NewerEvent(lane, error.tag, error.schema_version)
    return None
