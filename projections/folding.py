"""The work of a rebuild: whole lanes out of the log (COPY), folded, into the tables of the next generation (COPY).

`fold_lanes` runs in any number of processes on any number of machines. A lane is claimed by locking its row and folded in
the transaction that says so: whoever dies leaves nothing behind, and another takes the lane up. Memory holds one stream's
chunk at a time, or, for what adds up, the sums of one lane.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection, sql

from events.errors import LogCorrupted
from events.sql import Statements
from events.types import AnyEvent
from projections.definition import Followed, Inline, Projection
from projections.fact import Fact
from projections.generations import Generation
from projections.tables import LIVE, Row, Table, line

_SQL = Statements("projections", "generations.sql")
_CLAIM_LANE = _SQL["claim_lane"]
_LANES_LEFT = _SQL["lanes_left"]
_LANE_FOLDED = _SQL["lane_folded"]
_EVENTS_IN_LANE = _SQL["events_in_lane"]
_STREAMS_OF_LANE = _SQL["streams_of_lane"]
_FACTS_OF_LANE = Statements("projections", "facts.sql")["of_lane_by_stream"]

#: How many events of a stream travel together: a bound on memory that a stream of any length keeps to.
CHUNK = 256

#: How many streams, or chunks of streams, travel in one row of COPY: each row costs a turn of the driver.
STREAMS = 32

#: How much text of COPY is put together before it is sent.
BUFFER_CHARS = 64 * 1024

#: Pause before looking again where others hold every lane that is left.
RECHECK_S = 0.1

_streams: msgspec.json.Decoder[list[tuple[UUID, list[AnyEvent]]]] = msgspec.json.Decoder(
    list[tuple[UUID, list[AnyEvent]]]
)
_facts: msgspec.json.Decoder[list[Fact]] = msgspec.json.Decoder(list[Fact])


def fold_lanes(conninfo: str, projection: Projection, build: Generation, until_s: float | None = None) -> int:
    """Fold lanes of `build` until none is left, or until `until_s` (monotonic) has passed; how many that were.

    Returns at once where the code has another version than the build. Raises `LogCorrupted` and psycopg's errors.
    """
    folded = 0
    with (
        psycopg.connect(conninfo, autocommit=True) as reader,
        psycopg.connect(conninfo, autocommit=True) as writer,
    ):
        path = sql.SQL("SET search_path TO {}, {}").format(sql.Identifier(build.schema), sql.Identifier(LIVE))
        writer.execute(path)
        key = build.key | {"version": projection.version}
        while until_s is None or time.monotonic() < until_s:
            if _fold_one(reader, writer, projection, key):
                folded += 1
                continue
            left = writer.execute(_LANES_LEFT, key).fetchone()
            if left is None or left[0] == 0:
                break
            time.sleep(RECHECK_S)
    return folded


def _fold_one(reader: Connection[Any], writer: Connection[Any], projection: Projection, key: dict[str, Any]) -> bool:
    """One lane, whole; False where there was none to claim."""
    with writer.transaction():
        claimed = writer.execute(_CLAIM_LANE, key).fetchone()
        if claimed is None:
            return False
        lane, target = claimed
        # Two looks at one lane need not see the same end of it, but both see all that is not above the target.
        count = reader.execute(_EVENTS_IN_LANE, (lane, target)).fetchone()
        if count != (target,):
            raise LogCorrupted(lane, target, f"{count} events where {target} must be")
        if isinstance(projection, Inline):
            _copy_in(writer, projection.tables[0], _rows_of_streams(reader, projection, lane, target))
        else:
            _fold_facts(reader, writer, projection, lane, target)
        writer.execute(_LANE_FOLDED, key | {"lane": lane})
    return True


def _rows_of_streams(reader: Connection[Any], projection: Inline, lane: int, target: int) -> Iterator[Row]:
    current, fold = None, None
    query = _composed(_STREAMS_OF_LANE, lane=lane, target=target, chunk=CHUNK, streams=STREAMS)
    for batch in _copy_out(reader, query):
        for stream_id, events in _streams.decode(batch):
            if stream_id != current:
                if fold is not None:
                    yield from fold.rows()
                current, fold = stream_id, projection.begin(stream_id, lane=lane)
            assert fold is not None
            fold.feed(events)
    if fold is not None:
        yield from fold.rows()


def _fold_facts(reader: Connection[Any], writer: Connection[Any], projection: Followed, lane: int, target: int) -> None:
    fold = projection.begin()
    types = None if projection.types is None else list(projection.types)
    who = {"name": projection.name, "version": projection.version, "types": types}
    for batch in _copy_out(reader, _composed(_FACTS_OF_LANE, lane=lane, target=target, chunk=CHUNK, **who)):
        fold.feed(_facts.decode(batch))
    rows = fold.rows()
    for table in projection.tables:
        _copy_in(writer, table, rows[table.name])


def _copy_out(reader: Connection[Any], query: sql.Composed) -> Iterator[bytes]:
    with reader.cursor() as cursor, cursor.copy(query) as copy:
        # Text and bytea look alike in the binary format, and JSON is decoded from bytes.
        copy.set_types(["bytea"])
        for row in copy.rows():
            yield row[0]


def _copy_in(writer: Connection[Any], table: Table, rows: Iterable[Row]) -> None:
    with writer.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
        lines, size = list[str](), 0
        for row in rows:
            lines.append(line(row))
            size += len(lines[-1])
            if size > BUFFER_CHARS:
                copy.write("".join(lines))
                lines, size = [], 0
        copy.write("".join(lines))


def copy_statement(table: Table) -> sql.Composed:
    """COPY into `table`, in the text format, in the order of its columns."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
    return sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)


def _composed(statement: bytes, **values: Any) -> sql.Composed:
    """COPY takes no parameters: the values are quoted into it."""
    text: Any = statement.decode()
    return sql.SQL(text).format(**{name: sql.Literal(value) for name, value in values.items()})
