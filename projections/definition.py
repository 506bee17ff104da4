"""The definition of a projection: a name, a version, tables, and a pure fold from events to their rows.

An inline projection is folded stream by stream and written in the append's own transaction. A followed projection is
folded from facts, adds up, and is updated a moment after the append. A rebuild needs nothing else of either.
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
    """`ddl`: the block `tables` creates the bare tables with grants, the block `indexes` their keys and indexes."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def tables(self) -> tuple[Table, ...]: ...

    @property
    def ddl(self) -> Statements: ...


class StreamFold(Protocol):
    """Folds one stream to rows."""

    def feed(self, events: Sequence[AnyEvent]) -> None:
        """Take the stream's next events, in order."""
        ...

    def rows(self) -> Iterable[Row]:
        """The rows that are new or changed since the last call; the first time, all. Rows are never removed."""
        ...

    def weight(self) -> int:
        """About how many bytes its large values take. Called after `rows`."""
        ...


@runtime_checkable
class Inline(InlineProjection, Definition, Protocol):
    """A projection with one table, which is written by every append."""

    def begin(self, stream_id: UUID, *, lane: int) -> StreamFold:
        """The fold of a stream, before its first event."""
        ...


class Accumulator(Protocol):
    """Folds the facts of a lane to rows. Facts of a stream come in order, streams in any order."""

    def feed(self, facts: Sequence[Fact]) -> None: ...

    def rows(self) -> Rows: ...


class Followed(Definition, Interest, Protocol):
    """A projection that is updated from the log after the append. `Interest` says which events it wants."""

    def begin(self) -> Accumulator:
        """The fold of a lane, before its first event."""
        ...

    async def changes(self, read: Read, facts: Sequence[Fact], /) -> Sequence[Statement]:
        """The statements that add `facts` to the live tables, which `read` may read for that.

        The facts of each lane are in order. The statements run in the same transaction.
        """
        ...


Projection = Inline | Followed
