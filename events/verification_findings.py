"""The findings of a verification, each with its exact place, and its notes about what was not compared."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

import msgspec

#: The most findings that are kept per lane.
FINDINGS_MAX = 100


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is wrong. `kind` is a code for programs, `what` a sentence for people.

    The place is `lane` and `seq`, or a range up to `last_seq` if it cannot be narrowed down, and `stream_id` if one stream is concerned.
    A finding about a read table has the table's name in `table`.
    """

    kind: str
    what: str
    lane: int | None = None
    seq: int | None = None
    last_seq: int | None = None
    stream_id: UUID | None = None
    table: str | None = None

    @property
    def place(self) -> str:
        """The place in words, such as `lane 3, 17 to 19`."""
        parts = [] if self.lane is None else [f"lane {self.lane}"]
        if self.seq is not None:
            parts.append(str(self.seq) if self.last_seq in {None, self.seq} else f"{self.seq} to {self.last_seq}")
        if self.stream_id is not None:
            parts.append(f"stream {self.stream_id}")
        if self.table is not None:
            parts.append(f"table {self.table}")
        return ", ".join(parts) or "the log"


class Note(NamedTuple):
    """What was not compared, or was taken on trust. `details`: those in `lane`; empty if the note is about the whole log."""

    what: str
    lane: int = -1
    details: str = ""


def note_sentences(notes: Iterable[Note]) -> list[str]:
    """One sentence per `what`, with the details of all lanes. Sentences with lanes come first: there are few of them."""
    found: list[tuple[bool, str]] = []
    for what, alike in groupby(sorted(set(notes)), key=lambda note: note.what):
        lanes = [f"lane {note.lane} ({note.details})" for note in alike if note.details]
        found.append((not lanes, f"{what}: {', '.join(lanes)}" if lanes else what))
    return [sentence for _, sentence in sorted(found)]
