"""A build follows the log: what was appended while its lanes were being folded comes after.

Everything here runs in the caller's transaction, with the names of the tables pointing at the build's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, sql

from events.sql import Statements
from events.upcast import Stored, all_of_today
from projections import stored
from projections.copying import copy_in_async
from projections.definition import Followed, Inline, Projection, StreamFold
from projections.fact import Reader, read_facts, read_skipped
from projections.gathering import CHUNK
from projections.generations import Generation, use_schema
from projections.tables import Table

_SQL = Statements("projections", "catching_up.sql")
_HEADS = _SQL["heads"]
_POSITIONS = _SQL["positions"]
_TOUCHED = _SQL["touched"]
_STREAMS: Any = _SQL["streams"].decode()
_MOVE = _SQL["move"]

#: How many streams are folded again at a time, and how many facts of a lane are read at a time.
STREAMS_MAX = 500
FACTS_MAX = 1_000

_events: msgspec.json.Decoder[list[Stored]] = msgspec.json.Decoder(list[Stored])

Stream = tuple[int, UUID]
Positions = Mapping[int, int]


class CaughtUp(NamedTuple):
    """What a step forward took: how many events, of which lanes and (for an inline projection) of which streams."""

    events: int
    lanes: set[int]
    streams: set[Stream]


async def heads(connection: AsyncConnection) -> dict[int, int]:
    """The heads of all lanes in one look: a cut through the log at one moment."""
    return dict(await (await connection.execute(_HEADS)).fetchall())


async def positions(connection: AsyncConnection, follower: str) -> dict[int, int]:
    return dict(await (await connection.execute(_POSITIONS, (follower,))).fetchall())


async def catch_up(connection: AsyncConnection, projection: Projection, build: Generation, upto: Positions) -> CaughtUp:
    """Take `build` to `upto` in every lane where it is not there yet. `upto` must be a cut through the log."""
    at = await positions(connection, build.follower)
    ahead = {lane: seq for lane, seq in upto.items() if seq > at[lane]}
    if not ahead:
        return CaughtUp(0, set(), set())
    await use_schema(connection, build)
    if isinstance(projection, Inline):
        streams = await _fold_again(connection, projection, at, ahead)
    else:
        streams = set[Stream]()
        await _add(connection, projection, at, ahead)
    moved = {"follower": build.follower, "lanes": list(ahead), "upto": list(ahead.values())}
    await connection.execute(_MOVE, moved)
    events = sum(seq - at[lane] for lane, seq in ahead.items())
    return CaughtUp(events, set(ahead), streams)


async def _add(connection: AsyncConnection, projection: Followed, at: Positions, ahead: Positions) -> None:
    """The facts between, added as a follower adds them."""
    reader = Reader(projection.name, projection.version, projection.types)
    skipped = await read_skipped(connection, [reader])
    places = [(lane, at[lane]) for lane in ahead]
    while places:
        found = await read_facts(connection, places, [reader], upto=ahead, limit=FACTS_MAX)
        facts = reader.decode([position for place in places for position in found[place]], skipped)
        if facts:
            await projection.apply(connection, facts)
        moved = [(lane, after + len(found[lane, after])) for lane, after in places]
        places = [(lane, seq) for lane, seq in moved if seq < ahead[lane]]


async def _fold_again(connection: AsyncConnection, projection: Inline, at: Positions, ahead: Positions) -> set[Stream]:
    """Fold every stream that has new events once more, from its beginning, and put its rows in place of the old ones.

    All old rows go before the first new one comes: a value that one instance has released and another has taken in the
    meantime is never held twice, in whatever order the two are looked at.
    """
    parameters = {"lanes": list(ahead), "after": [at[lane] for lane in ahead], "upto": list(ahead.values())}
    streams: list[Stream] = await (await connection.execute(_TOUCHED, parameters)).fetchall()
    table = projection.tables[0]
    await connection.execute(_delete(table), _lists(streams))
    for start in range(0, len(streams), STREAMS_MAX):
        some = streams[start : start + STREAMS_MAX]
        upto = [ahead[lane] for lane, _ in some]
        query = sql.SQL(_STREAMS).format(payload=stored.payload())
        cursor = await connection.execute(query, {**_lists(some), "upto": upto, "chunk": CHUNK})
        folds: dict[Stream, StreamFold] = {}
        for lane, stream_id, payloads in await cursor.fetchall():
            if (lane, stream_id) not in folds:
                folds[lane, stream_id] = projection.begin(stream_id, lane=lane)
            folds[lane, stream_id].feed(all_of_today(_events.decode(payloads)))
        await copy_in_async(connection, table, [row for fold in folds.values() for row in fold.rows()])
    return set(streams)


def _delete(table: Table) -> sql.Composed:
    assert table.stream is not None, "a row of an inline projection belongs to a stream"
    places = sql.SQL("t.lane = s.lane AND ") if table.laned else sql.SQL("")
    return sql.SQL(
        "DELETE FROM {table} t USING unnest(%(lanes)s::smallint[], %(streams)s::uuid[]) AS s (lane, stream_id)"
        " WHERE {places}t.{stream} = s.stream_id"
    ).format(table=sql.Identifier(table.name), places=places, stream=sql.Identifier(table.stream))


def _lists(streams: list[Stream]) -> dict[str, Any]:
    return {"lanes": [lane for lane, _ in streams], "streams": [stream_id for _, stream_id in streams]}
