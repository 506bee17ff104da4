"""Compares the read tables with what the log gives: whole histories folded anew, against the rows that are served.

An append writes its events and its rows together, so in one snapshot both must agree, however busy the writers are. Streams are
taken a few hundred at a time, each time in a snapshot of its own, so that neither memory nor a transaction grows with the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection, sql

from events import pages
from events.exchange import array
from events.finding import FINDINGS_MAX, Finding
from events.ids import lane_of
from events.sql import Statements, identifiers, template
from events.types import AnyEvent
from events.upcast import Stored, all_of_today
from hydracore.audit.newer import Newer, newer
from hydracore.audit.rows import as_stored, ask, differences, lock, read
from hydracore.audit.served import served
from projections import stored
from projections.definition import Inline, StreamFold
from projections.stored import events_of
from projections.stream_assembly import CHUNK, parts_of
from projections.tables import LIVE, Row, Table

_SQL = Statements("hydracore.audit", "tables.sql")
_HISTORIES = _SQL["histories"]

#: How many streams are folded and compared at a time, and how many events they may have together unless one has more alone.
STREAMS_MAX = 500
EVENTS_MAX = 4_000

_history: msgspec.json.Decoder[tuple[UUID, list[Stored]]] = msgspec.json.Decoder(tuple[UUID, list[Stored]])

#: Where the id of a stream stands in what that decodes.
_ID = slice(2, 38)


class Part(NamedTuple):
    """Streams that are compared together, by the bytes of their ids, with the lane that each was met in; and how many events
    they have.
    """

    lanes: dict[bytes, int]
    events: int

    def halves(self) -> tuple[Part, Part]:
        streams, middle = list(self.lanes.items()), len(self.lanes) // 2
        return Part(dict(streams[:middle]), 0), Part(dict(streams[middle:]), 0)


def parts(lanes: Mapping[int, Iterable[tuple[bytes, int]]]) -> Iterator[Part]:
    """The streams of some lanes, given with the number of their events, in parts.

    Streams that began at the same time come together, because their events lie together. One that somebody put in another lane as well
    is in a part of its own for each.
    """
    streams, events = dict[bytes, int](), 0
    for of_lanes in zip_longest(*lanes.values()):
        for lane, each in zip(lanes, of_lanes, strict=True):
            if each is None:
                continue
            stream, version = each
            is_full = len(streams) == STREAMS_MAX or events + version > EVENTS_MAX
            if streams and (is_full or stream in streams):
                yield Part(streams, events)
                streams, events = {}, 0
            streams[stream] = lane
            events += version
    if streams:
        yield Part(streams, events)


class Compared(NamedTuple):
    """A table with the statement that reads its rows, and the projection that folds them."""

    projection: Inline
    table: Table
    rows: sql.Composed


def compare(connection: Connection, part: Part, projections: Sequence[Inline]) -> Iterator[Finding | Newer]:
    """Where rows are not what the histories of these streams give, and what could not be compared. In a transaction that has seen
    nothing yet.

    `projections`: those that were served a moment ago.
    """
    lock(connection, projections)
    compared = [_compared(projection) for projection in served(connection).inline]
    # Histories come in the order of the streams, and rows in the order in which streams are asked for.
    lanes = {UUID(bytes=stream): part.lanes[stream] for stream in sorted(part.lanes)}
    asked = _asked(lanes)
    fresh: dict[str, list[Row]] = {each.table.name: [] for each in compared}
    unfoldable: set[UUID] = set()
    for stream_id, rows in _fold(connection, lanes, compared, asked):
        if isinstance(rows, (Finding, Newer)):
            yield rows
            unfoldable.add(stream_id)
            continue
        for name, of_stream in rows.items():
            fresh[name] += of_stream
    for each in compared:
        wanted = as_stored(each.table, fresh[each.table.name])
        live = read(connection, each.rows, asked)
        if live != wanted:
            of_stream = each.table.columns.index(each.table.stream or "")
            place = partial(_place, lanes, of_stream, unfoldable)
            yield from differences(each.table, live, wanted, place=place)


def matching(
    connection: Connection, histories: Mapping[bytes, list[bytes]], projections: Sequence[Inline]
) -> dict[bytes, int]:
    """Those of whole streams (`hydracore.audit.histories`) whose rows are what their events give, with the number of these; the others
    are for `compare` to look into. In a transaction, and with `projections`, as there.
    """
    lock(connection, projections)
    compared = [_compared(projection) for projection in served(connection).inline]
    streams = {msgspec.convert(stream, UUID): stream for stream in sorted(histories)}
    lanes = {stream_id: lane_of(stream_id) for stream_id in streams}
    fresh: dict[str, list[Row]] = {each.table.name: [] for each in compared}
    doubtful: set[UUID] = set()
    with connection.pipeline():
        # The session looks for the rows while streams are folded here.
        cursors = [ask(connection, each.rows, _asked(lanes)) for each in compared]
        for stream_id, stream in streams.items():
            parts = (events_of(b"[" + b",".join(some) + b"]") for some in parts_of(histories[stream]))
            rows = _rows_of(stream_id, lanes[stream_id], parts, compared)
            if isinstance(rows, (Finding, Newer)):
                doubtful.add(stream_id)
                continue
            for name, of_stream in rows.items():
                fresh[name] += of_stream
    for each, cursor in zip(compared, cursors, strict=True):
        wanted, live = as_stored(each.table, fresh[each.table.name]), cursor.fetchall()
        if live != wanted:
            try:
                there = set(live)
            except TypeError:
                return {}  # Lists and documents: somebody has given a column another type.
            # Where a row is there twice, nothing is said of any.
            odd = there ^ set(wanted) if len(there) == len(live) else there | set(wanted)
            of_stream = each.table.columns.index(each.table.stream or "")
            doubtful |= {row[of_stream] for row in odd}
    return {stream: len(histories[stream]) for stream_id, stream in streams.items() if stream_id not in doubtful}


def _asked(lanes: Mapping[UUID, int]) -> dict[str, str]:
    """Streams with their lanes, as parameters."""
    return {"lanes": array(map(str, lanes.values())).decode(), "streams": array(map(str, lanes)).decode()}


def _place(lanes: Mapping[UUID, int], of_stream: int, unfoldable: set[UUID], row: Row) -> dict[str, Any] | None:
    stream_id = row[of_stream]
    return None if stream_id in unfoldable else {"lane": lanes[stream_id], "stream_id": stream_id}


def orphan_rows(connection: Connection, projections: Sequence[Inline]) -> Iterator[Finding]:
    """Rows of instances that never were, or were not in this lane."""
    statement = template(_SQL["orphan_rows"])
    for table in (table for projection in projections for table in projection.tables):
        assert table.stream is not None, "inline rows belong to streams"
        query = statement.format(
            table=sql.Identifier(LIVE, table.name),
            stream=sql.Identifier(table.stream),
            place=identifiers((table.stream, "lane") if table.laned else (table.stream,)),
            and_lane=sql.SQL(" AND e.lane = t.lane" if table.laned else ""),
        )
        for (stream_id,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = "The table has rows of an instance that the log does not have in their lane"
            yield Finding(kind="row_extra", what=what, stream_id=stream_id, table=table.name)


def _fold(
    connection: Connection, lanes: Mapping[UUID, int], compared: Sequence[Compared], asked: Mapping[str, str]
) -> Iterator[tuple[UUID, Mapping[str, list[Row]] | Finding | Newer]]:
    """For each stream the rows that it gives, by table; or what is wrong with it. `asked`: the lanes and streams as arrays."""
    query = template(_HISTORIES).format(
        payload=stored.payload(),
        weight=pages.weight(),
        bytes=sql.Literal(pages.PAGE_BYTES),
        lanes=sql.Literal(asked["lanes"]),
        streams=sql.Literal(asked["streams"]),
        chunk=sql.Literal(CHUNK),
    )
    with connection.cursor().copy(query) as copy:
        for stream_id, chunks in groupby(copy.rows(), key=lambda row: UUID(row[0][_ID].decode())):
            parts = (all_of_today(_history.decode(chunk)[1]) for (chunk,) in chunks)
            yield stream_id, _rows_of(stream_id, lanes[stream_id], parts, compared)


def _rows_of(
    stream_id: UUID, lane: int, parts: Iterable[Sequence[AnyEvent]], compared: Sequence[Compared]
) -> Mapping[str, list[Row]] | Finding | Newer:
    try:
        folds: dict[str, StreamFold] = {
            each.table.name: each.projection.begin(stream_id, lane=lane) for each in compared
        }
        for events in parts:
            for fold in folds.values():
                fold.feed(events)
        return {name: list(fold.rows()) for name, fold in folds.items()}
    except (psycopg.Error, MemoryError):
        raise  # Parts come from the database: one that goes away is no finding.
    except Exception as error:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere
        what = f"The events of the stream are inconsistent: {type(error).__name__}"
        return newer(error, lane) or Finding(kind="history_broken", what=what, lane=lane, stream_id=stream_id)


def _compared(projection: Inline) -> Compared:
    (table,) = projection.tables
    assert table.stream is not None, "inline rows belong to streams"
    rows = template(_SQL["rows"]).format(
        columns=sql.SQL(", ").join(sql.Identifier("t", name) for name in table.columns),
        table=sql.Identifier(LIVE, table.name),
        stream=sql.Identifier(table.stream),
        and_lane=sql.SQL(" AND t.lane = s.lane" if table.laned else ""),
    )
    return Compared(projection, table, rows)
