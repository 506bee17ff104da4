"""What a verification finds: one thing each that must not be, with its exact place; and what its reader should know besides."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

import msgspec

#: How many findings of one lane are kept. Whoever sees so many looks at the first one anyway.
FINDINGS_MAX = 100


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`kind` is a code for programs, `what` a sentence for people.

    The place is `lane` and `seq`, a range up to `last_seq` where it cannot be told more closely, and the stream where it
    is one stream's. A finding about a read table has its name in `table`.
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
        """Such as `lane 3, 17 to 19`."""
        parts = [] if self.lane is None else [f"lane {self.lane}"]
        if self.seq is not None:
            parts.append(str(self.seq) if self.last_seq in {None, self.seq} else f"{self.seq} to {self.last_seq}")
        if self.stream_id is not None:
            parts.append(f"stream {self.stream_id}")
        if self.table is not None:
            parts.append(f"table {self.table}")
        return ", ".join(parts) or "the log"


class Note(NamedTuple):
    """What was not looked at, or was believed. `there`: what there is to say of it in `lane`, where it is of one."""

    what: str
    lane: int = -1
    there: str = ""


def sentences(notes: Iterable[Note]) -> list[str]:
    """Each thing once, with all its lanes. What has lanes comes first: of them there are no more than projections."""
    found: list[tuple[bool, str]] = []
    for what, alike in groupby(sorted(set(notes)), key=lambda note: note.what):
        lanes = [f"lane {note.lane} ({note.there})" for note in alike if note.there]
        found.append((not lanes, f"{what}: {', '.join(lanes)}" if lanes else what))
    return [sentence for _, sentence in sorted(found)]
