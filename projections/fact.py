"""A fact: an event as followed projections see it, with its place in the log and who did what it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, sql

from events.errors import LogCorrupted
from events.sql import Statements
from events.types import AnyEvent
from events.upcast import Outdated, Stored, of_today
from projections import stored

_OF_LANES: Any = Statements("projections", "facts.sql")["of_lanes"].decode()


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """`command`: the name of the order that caused the event; `first`: whether this is the first event that it caused."""

    lane: int
    seq: int
    stream_id: UUID
    tenant_id: str
    recorded_at: datetime
    actor: str
    command: str
    first: bool
    event: AnyEvent


class _Read(Fact, frozen=True, kw_only=True):
    """A fact as it comes out of the log, its event in whatever version."""

    event: Stored  # pyright: ignore[reportIncompatibleVariableOverride] - of today before anybody else sees it


_decoder: msgspec.json.Decoder[_Read] = msgspec.json.Decoder(_Read)
_list_decoder: msgspec.json.Decoder[list[_Read]] = msgspec.json.Decoder(list[_Read])


class Position(NamedTuple):
    """A place in the log, and the fact there as JSON; None where the reader did not ask for events of its type."""

    lane: int
    seq: int
    json: str | None


class Reader(NamedTuple):
    """Who reads: what it skipped stays skipped for it. `types`: the stored names of the events it wants, None for all."""

    name: str
    version: int
    types: tuple[str, ...] | None


def decode_facts(positions: Sequence[Position]) -> list[Fact]:
    """Raises `EventUnreadable` for an event of a version that is not known here, and `msgspec.ValidationError` for one of a
    type or shape that was never written.
    """
    return [_of_today(_decoder.decode(position.json)) for position in positions if position.json is not None]


def decode_list(facts: bytes) -> list[Fact]:
    """The facts of a JSON array. Raises as `decode_facts` does."""
    return [_of_today(fact) for fact in _list_decoder.decode(facts)]


def _of_today(fact: _Read) -> Fact:
    return msgspec.structs.replace(fact, event=of_today(fact.event)) if isinstance(fact.event, Outdated) else fact


async def read_facts(
    connection: AsyncConnection,
    reader: Reader,
    *,
    after: Mapping[int, int],
    limit: int,
    upto: Mapping[int, int] | None = None,
) -> list[Position]:
    """Up to `limit` places of each lane, above `after` and not above `upto`, ordered by lane and number.

    Raises `LogCorrupted` where a number is missing.
    """
    lanes = sorted(after)
    parameters = {
        "name": reader.name,
        "version": reader.version,
        "types": None if reader.types is None else list(reader.types),
        "lanes": lanes,
        "after": [after[lane] for lane in lanes],
        "upto": [None if upto is None else upto[lane] for lane in lanes],
        "limit": limit,
    }
    query = sql.SQL(_OF_LANES).format(payload=stored.payload())
    cursor = await connection.execute(query, parameters)
    positions = [Position(*row) for row in await cursor.fetchall()]
    before = dict(after)
    for lane, seq, _ in positions:
        if seq != before[lane] + 1:
            raise LogCorrupted(lane, before[lane] + 1, f"the next event is {seq}")
        before[lane] = seq
    return positions
