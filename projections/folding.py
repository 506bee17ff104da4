"""The work of a rebuild: lanes out of the log (COPY), folded, into the tables of the next generation (COPY).

`fold_lanes` runs in any number of processes on any number of machines. Lanes are claimed, some at once, by locking their
rows, and folded in the transaction that says so: whoever dies leaves nothing behind, and another takes the lanes up. Memory
holds one stream's chunk at a time, or, for what adds up, the sums of one lane.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection, sql

from events.errors import LogCorrupted
from events.ids import LANES, lane_of
from events.sql import Statements
from events.upcast import Stored, all_of_today
from projections import stored
from projections.definition import Followed, Inline, Projection
from projections.fact import decode_list
from projections.generations import Generation
from projections.tables import COPY_FORMAT, LIVE, Row, Table, line

_SQL = Statements("projections", "generations.sql")
_FOLD_SESSION = _SQL["fold_session"]
_CLAIM_LANES = _SQL["claim_lanes"]
_LANES_LEFT = _SQL["lanes_left"]
_LANES_FOLDED = _SQL["lanes_folded"]
_EVENTS_IN_LANES = _SQL["events_in_lanes"]
_STREAMS_OF_LANES = _SQL["streams_of_lanes"]
_FACTS_OF_LANES = Statements("projections", "facts.sql")["of_lanes_by_stream"]

#: How many events of a stream travel together: a bound on memory that a stream of any length keeps to.
CHUNK = 256

#: How many lanes are claimed at once unless the caller knows better, and at most: a claim is what a kill undoes.
LANES_AT_ONCE = 4
LANES_AT_ONCE_MAX = 16

#: How much text of COPY is put together before it is sent.
BUFFER_BYTES = 64 * 1024

#: Pause before looking again where others hold every lane that is left.
RECHECK_S = 0.1

_stream: msgspec.json.Decoder[tuple[UUID, list[Stored]]] = msgspec.json.Decoder(tuple[UUID, list[Stored]])

#: How far lanes are to be folded.
Targets = dict[int, int]


def fold_lanes(
    conninfo: str,
    projection: Projection,
    build: Generation,
    *,
    until_s: float | None = None,
    at_once: int = LANES_AT_ONCE,
) -> int:
    """Fold lanes of `build`, `at_once` of them at a time, until none is left, or until `until_s` (monotonic) has passed; how
    many that were.

    Returns at once where the code has another version than the build. Raises `LogCorrupted` and psycopg's errors.
    """
    folded = 0
    with (
        psycopg.connect(conninfo, autocommit=True) as reader,
        psycopg.connect(conninfo, autocommit=True) as writer,
    ):
        reader.execute(_FOLD_SESSION)
        path = sql.SQL("SET search_path TO {}, {}").format(sql.Identifier(build.schema), sql.Identifier(LIVE))
        writer.execute(path)
        key = build.key | {"version": projection.version, "limit": at_once}
        while until_s is None or time.monotonic() < until_s:
            if count := _fold_some(reader, writer, projection, key):
                folded += count
                continue
            left = writer.execute(_LANES_LEFT, key).fetchone()
            if left is None or left[0] == 0:
                break
            time.sleep(RECHECK_S)
    return folded


def _fold_some(reader: Connection[Any], writer: Connection[Any], projection: Projection, key: dict[str, Any]) -> int:
    """A few lanes, whole; 0 where there was none to claim."""
    with writer.transaction():
        targets: Targets = dict(writer.execute(_CLAIM_LANES, key).fetchall())
        if not targets:
            return 0
        # Two looks at one lane need not see the same end of it, but both see all that is not above the target.
        lists = {"lanes": list(targets), "targets": list(targets.values())}
        for lane, target, count in reader.execute(_EVENTS_IN_LANES, lists):
            if count != target:
                raise LogCorrupted(lane, target, f"{count} events where {target} must be")
        if isinstance(projection, Inline):
            _copy_in(writer, projection.tables[0], _rows_of_streams(reader, projection, targets))
        else:
            _fold_facts(reader, writer, projection, targets)
        writer.execute(_LANES_FOLDED, key | lists)
    return len(targets)


def _rows_of_streams(reader: Connection[Any], projection: Inline, targets: Targets) -> Iterator[Row]:
    current, fold = None, None
    for (chunk,) in _copy_out(reader, _query(_STREAMS_OF_LANES, targets)):
        stream_id, events = _stream.decode(chunk)
        if fold is None or stream_id != current:
            if fold is not None:
                yield from fold.rows()
            current, fold = stream_id, projection.begin(stream_id, lane=lane_of(stream_id))
        fold.feed(all_of_today(events))
    if fold is not None:
        yield from fold.rows()


def _fold_facts(reader: Connection[Any], writer: Connection[Any], projection: Followed, targets: Targets) -> None:
    types = None if projection.types is None else list(projection.types)
    query = _query(_FACTS_OF_LANES, targets, name=projection.name, version=projection.version, types=types)
    for _, chunks in groupby(_copy_out(reader, query), key=lambda row: row[0]):
        fold = projection.begin()
        for _, chunk in chunks:
            fold.feed(decode_list(chunk))
        rows = fold.rows()
        for table in projection.tables:
            _copy_in(writer, table, rows[table.name])


def _copy_out(reader: Connection[Any], query: sql.Composed) -> Iterator[tuple[Any, ...]]:
    """The rows, as bytes: nothing is made of them here."""
    with reader.cursor() as cursor, cursor.copy(query) as copy:
        yield from copy.rows()


def _copy_in(writer: Connection[Any], table: Table, rows: Iterable[Row]) -> None:
    with writer.cursor() as cursor, cursor.copy(copy_statement(table)) as copy:
        buffer = bytearray()
        for row in rows:
            buffer += line(row)
            if len(buffer) > BUFFER_BYTES:
                copy.write(bytes(buffer))
                buffer.clear()
        copy.write(bytes(buffer))


def copy_statement(table: Table) -> sql.Composed:
    """COPY into `table`, of lines as `tables.line` makes them, in the order of its columns."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
    return sql.SQL("COPY {} ({}) FROM STDIN ({})").format(sql.Identifier(table.name), columns, sql.SQL(COPY_FORMAT))


def _query(statement: bytes, targets: Targets, **values: Any) -> sql.Composed:
    """COPY takes no parameters: the values are quoted into it."""
    text: Any = statement.decode()
    literals = {
        "lanes": list(targets),
        "targets": [targets.get(lane, 0) for lane in range(LANES)],
        "chunk": CHUNK,
        **values,
    }
    quoted = {name: sql.Literal(value) for name, value in literals.items()}
    return sql.SQL(text).format(payload=stored.payload(), **quoted)
