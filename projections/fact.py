"""A fact: an event as followed projections see it, with its place in the log and who did what it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from events.errors import LogCorrupted
from events.sql import Statements
from events.types import AnyEvent

_OF_LANES = Statements("projections", "facts.sql")["of_lanes"]


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


_decoder: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)


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
    """Raises `msgspec.ValidationError` for an event of a type or shape that was never written."""
    return [_decoder.decode(position.json) for position in positions if position.json is not None]


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
    cursor = await connection.execute(_OF_LANES, parameters)
    positions = [Position(*row) for row in await cursor.fetchall()]
    before = dict(after)
    for lane, seq, _ in positions:
        if seq != before[lane] + 1:
            raise LogCorrupted(lane, before[lane] + 1, f"the next event is {seq}")
        before[lane] = seq
    return positions
