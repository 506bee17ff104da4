"""A fact: an event as followed projections read it, with its position in the log and the command that caused it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, Self
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from events.codec import tag_of
from events.exchange import Rows, Statement, exchange
from events.types import AnyEvent
from events.upcast import OutdatedEvent, StoredEvent, to_current


class WithoutPayload(msgspec.Struct, frozen=True, tag_field="type", tag="without_payload"):
    """Replaces an event of the type `name` for readers without `payloads`."""

    name: str


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """`command`: the name of the command that caused the event. `first`: whether this is the first event that it
    caused.
    """

    lane: int
    seq: int
    stream_id: UUID
    tenant_id: str
    recorded_at: datetime
    actor: str
    command: str
    first: bool
    event_or_type: AnyEvent | WithoutPayload = msgspec.field(name="event")

    @property
    def event(self) -> AnyEvent:
        """The event itself. Only for readers with `payloads`."""
        assert not isinstance(self.event_or_type, WithoutPayload), "payloads were not asked for"
        return self.event_or_type

    @property
    def type(self) -> str:
        """The stored name of the event's type."""
        return self.event_or_type.name if isinstance(self.event_or_type, WithoutPayload) else tag_of(self.event_or_type)


class _StoredFact(Fact, frozen=True, kw_only=True):
    """A fact as it is read from the log: its event may be of an old version."""

    event_or_type: StoredEvent | WithoutPayload = msgspec.field(name="event")  # pyright: ignore[reportIncompatibleVariableOverride] - of today before anybody else sees it


class _FactWithRawEvent(Fact, frozen=True, kw_only=True):
    """A fact as it is read for readers without `payloads`. Its event may be undecodable, and is not decoded."""

    event_or_type: msgspec.Raw = msgspec.field(name="event")  # pyright: ignore[reportIncompatibleVariableOverride] - of no type before anybody else sees it


_decoder: msgspec.json.Decoder[_StoredFact] = msgspec.json.Decoder(_StoredFact)
_raw_decoder: msgspec.json.Decoder[_FactWithRawEvent] = msgspec.json.Decoder(_FactWithRawEvent)
_list_decoder: msgspec.json.Decoder[list[_StoredFact]] = msgspec.json.Decoder(list[_StoredFact])


#: A lane, and the number of the event after which it is read.
Place = tuple[int, int]

#: Events that were skipped by hand: the reader's name, the lane, the event's number.
Skipped = frozenset[tuple[str, int, int]]


class LogEntry(NamedTuple):
    """An event of the log: its position, the stored name of its type, and its fact.

    `json`: the fact as JSON; None where no reader wants events of its type.
    """

    lane: int
    seq: int
    type: str
    json: bytes | None


def stream_of(entry: LogEntry) -> UUID:
    """The stream of the event in `entry`, even if the event cannot be decoded. `entry` must have JSON."""
    assert entry.json is not None, "a reader wants events of its type"
    return msgspec.json.decode(entry.json, type=_StreamId).stream_id


class _StreamId(msgspec.Struct):
    stream_id: UUID


class Interest(Protocol):
    """What a reader wants from the log.

    `name` and `version`: events that were skipped by hand are recorded under them. `types`: the stored names of the
    events that it wants, None for all. `payloads`: whether it wants the events' contents too, and not only who caused
    them and when.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def types(self) -> tuple[str, ...] | None: ...

    @property
    def payloads(self) -> bool: ...


class _SeqOnly(msgspec.Struct):
    seq: int


class Reader(NamedTuple):
    """An `Interest` as plain values."""

    name: str
    version: int
    types: tuple[str, ...] | None
    payloads: bool

    @classmethod
    def of(cls, interest: Interest) -> Self:
        return cls(interest.name, interest.version, interest.types, interest.payloads)

    def decode(self, entries: Sequence[LogEntry], skipped: Skipped) -> list[Fact]:
        """The facts among `entries` that this reader wants and that are not skipped.

        If it wants `payloads`, raises `EventUnreadable` for an event of a version that this code does not know, and
        `msgspec.ValidationError` for one of a type or shape that was never written.
        """
        decoded = _with_payload if self.payloads else _without_payload
        return [
            decoded(entry.json, entry.type)
            for entry in entries
            if entry.json is not None
            and (self.types is None or entry.type in self.types)
            and (self.name, entry.lane, entry.seq) not in skipped
        ]


def decode_list(facts: bytes) -> list[Fact]:
    """The facts of a JSON array. Raises as `Reader.decode` does."""
    return [_to_current(fact) for fact in _list_decoder.decode(facts)]


def seq_of(facts: bytes) -> int:
    """The number of the first fact in a JSON array of facts, even if its event cannot be decoded."""
    return msgspec.json.decode(facts, type=list[_SeqOnly])[0].seq


def _with_payload(fact: bytes, _: str) -> Fact:
    return _to_current(_decoder.decode(fact))


def _without_payload(fact: bytes, name: str) -> Fact:
    return msgspec.structs.replace(_raw_decoder.decode(fact), event_or_type=WithoutPayload(name))


def _to_current(fact: _StoredFact) -> Fact:
    return (
        msgspec.structs.replace(fact, event_or_type=to_current(fact.event_or_type))
        if isinstance(fact.event_or_type, OutdatedEvent)
        else fact
    )


Read = Callable[[Statement], Awaitable[Rows]]
"""Reads a projection's own tables, in the transaction that will change them."""


def table_reader(connection: AsyncConnection, *, prepared: bool = True) -> Read:
    """A `Read` on this connection. `prepared`: see `exchange`."""

    async def read(statement: Statement) -> Rows:
        (rows,) = await exchange(connection, [statement], prepared=prepared)
        return rows

    return read


def payload_types(readers: Iterable[Interest]) -> list[str] | None:
    """The types of events whose payloads at least one of `readers` wants; None for all."""
    with_payloads = [reader for reader in readers if reader.payloads]
    if any(reader.types is None for reader in with_payloads):
        return None
    return sorted({name for reader in with_payloads for name in reader.types or ()})
