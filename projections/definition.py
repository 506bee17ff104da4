"""What a projection is: a name, a version, tables, and a pure fold from events to their rows.

An inline one is folded stream by stream and is written in the append's own transaction; a followed one is folded from
facts, adds up, and comes a moment after the log. A rebuild needs no more of either than what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable
from uuid import UUID

from events.exchange import Statement
from events.record import InlineProjection
from events.sql import Statements
from events.types import AnyEvent
from projections.fact import Fact, Interest, Read
from projections.tables import Row, Rows, Table


class Definition(Protocol):
    """`ddl`: the block `tables` makes the bare tables with their grants, the block `indexes` their keys and indexes."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def tables(self) -> tuple[Table, ...]: ...

    @property
    def ddl(self) -> Statements: ...


class StreamFold(Protocol):
    """One stream on its way to rows."""

    def feed(self, events: Sequence[AnyEvent]) -> None:
        """The stream's next events, in order."""
        ...

    def rows(self) -> Iterable[Row]:
        """The rows that are new, or other than they were, since this was asked last; the first time, all. No row ever goes."""
        ...

    def weight(self) -> int:
        """How many bytes it holds, about, of what can be large. For whoever has asked for the rows."""
        ...


@runtime_checkable
class Inline(InlineProjection, Definition, Protocol):
    """Has one table."""

    def begin(self, stream_id: UUID, *, lane: int) -> StreamFold:
        """The fold of a stream, before its first event."""
        ...


class Accumulator(Protocol):
    """Facts on their way to rows; those of each stream come in order, streams in any order."""

    def feed(self, facts: Sequence[Fact]) -> None: ...

    def rows(self) -> Rows: ...


class Followed(Definition, Interest, Protocol):
    """Wants events of some types, and what they say or not."""

    def begin(self) -> Accumulator:
        """The fold of a lane, before its first event."""
        ...

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        """What adds `facts`, those of each lane in order, to the tables that are there, which may be read for it.

        Is run in the same transaction.
        """
        ...


Projection = Inline | Followed
