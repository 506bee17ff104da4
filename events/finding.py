"""What a verification finds: one thing each that must not be, with its exact place."""

from __future__ import annotations

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
