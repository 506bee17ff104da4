"""Compares the inline read tables with the log: folds whole histories, and compares the result with the rows.

An append writes its events and its rows in one transaction, so that in one snapshot both must agree,
however busy the writers are. Streams are compared a few hundred at a time, each time in a new snapshot,
so that neither memory nor a transaction grows with the log.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection, sql

from events import pages
from events.exchange import array_literal
from events.ids import lane_of
from events.sql import Statements, identifiers, template
from events.types import AnyEvent
from events.upcast import StoredEvent, all_to_current
from events.verification_findings import FINDINGS_MAX, Finding
from hydracore.audit.newer_events import NewerEvent, newer_event
from hydracore.audit.rows import as_stored, differences, execute_raw, lock_tables, read_rows
from hydracore.audit.served_projections import find_served_projections
from projections import sql_fragments
from projections.definition import Inline, StreamFold
from projections.sql_fragments import events_of
from projections.stream_assembly import CHUNK, page_sized_lists
from projections.tables import LIVE, Row, Table

_SQL = Statements("hydracore.audit", "inline_tables.sql")
_HISTORIES = _SQL["histories"]

#: The most streams that are compared at a time, and the most events that they have together, unless a
#: single stream has more.
STREAMS_MAX = 500
EVENTS_MAX = 4_000

_history: msgspec.json.Decoder[tuple[UUID, list[StoredEvent]]] = msgspec.json.Decoder(tuple[UUID, list[StoredEvent]])

#: The position of the stream's id in the bytes that `_history` decodes.
_ID = slice(2, 38)


class StreamBatch(NamedTuple):
    """Streams that are compared together. `lanes`: the lane that each was found in, by the bytes of its id."""

    lanes: dict[bytes, int]
    events: int

    def halves(self) -> tuple[StreamBatch, StreamBatch]:
        streams, middle = list(self.lanes.items()), len(self.lanes) // 2
        return StreamBatch(dict(streams[:middle]), 0), StreamBatch(dict(streams[middle:]), 0)


def batches(lanes: Mapping[int, Iterable[tuple[bytes, int]]]) -> Iterator[StreamBatch]:
    """Divide streams into batches. `lanes`: the streams of each lane, each with the number of its events.

    Streams that began at the same time come into one batch, because their events are stored near each
    other. A stream that somebody has copied to another lane comes into a different batch for each lane.
    """
    streams, events = dict[bytes, int](), 0
    for of_lanes in zip_longest(*lanes.values()):
        for lane, each in zip(lanes, of_lanes, strict=True):
            if each is None:
                continue
            stream, version = each
            is_full = len(streams) == STREAMS_MAX or events + version > EVENTS_MAX
            if streams and (is_full or stream in streams):
                yield StreamBatch(streams, events)
                streams, events = {}, 0
            streams[stream] = lane
            events += version
    if streams:
        yield StreamBatch(streams, events)


class ComparedTable(NamedTuple):
    """A table with the statement that reads its rows, and the projection that folds them."""

    projection: Inline
    table: Table
    rows: sql.Composed


def compare(
    connection: Connection, batch: StreamBatch, projections: Sequence[Inline]
) -> Iterator[Finding | NewerEvent]:
    """Compare rows with what the histories of these streams give. Yields what differs, and what could not be compared.

    It has to be called first in a transaction (see `lock_tables`). `projections`: those that were served a moment ago.
    """
    lock_tables(connection, projections)
    compared = [_compared_table(projection) for projection in find_served_projections(connection).inline]
    # Histories come in the order of the streams, and rows in the order of `parameters`.
    lanes = {UUID(bytes=stream): batch.lanes[stream] for stream in sorted(batch.lanes)}
    parameters = _stream_parameters(lanes)
    fresh: dict[str, list[Row]] = {each.table.name: [] for each in compared}
    unfoldable: set[UUID] = set()
    for stream_id, rows in _fold_histories(connection, lanes, compared, parameters):
        if isinstance(rows, (Finding, NewerEvent)):
            yield rows
            unfoldable.add(stream_id)
            continue
        for name, of_stream in rows.items():
            fresh[name] += of_stream
    for each in compared:
        wanted = as_stored(each.table, fresh[each.table.name])
        live = read_rows(connection, each.rows, parameters)
        if live != wanted:
            of_stream = each.table.columns.index(each.table.stream or "")
            place = partial(_place, lanes, of_stream, unfoldable)
            yield from differences(each.table, live, wanted, place=place)


def matching_streams(
    connection: Connection, histories: Mapping[bytes, list[bytes]], projections: Sequence[Inline]
) -> dict[bytes, int]:
    """The streams whose rows equal the fold of their events, with the number of these events. Others need `compare`.

    `histories`: complete streams (see `history_collector`). The transaction and `projections`: as in `compare`.
    """
    lock_tables(connection, projections)
    compared = [_compared_table(projection) for projection in find_served_projections(connection).inline]
    streams = {msgspec.convert(stream, UUID): stream for stream in sorted(histories)}
    lanes = {stream_id: lane_of(stream_id) for stream_id in streams}
    fresh: dict[str, list[Row]] = {each.table.name: [] for each in compared}
    mismatched: set[UUID] = set()
    with _pipeline(connection):
        # The server looks for the rows while streams are folded here.
        cursors = [execute_raw(connection, each.rows, _stream_parameters(lanes)) for each in compared]
        for stream_id, stream in streams.items():
            parts = (events_of(b"[" + b",".join(some) + b"]") for some in page_sized_lists(histories[stream]))
            rows = _rows_of(stream_id, lanes[stream_id], parts, compared)
            if isinstance(rows, (Finding, NewerEvent)):
                mismatched.add(stream_id)
                continue
            for name, of_stream in rows.items():
                fresh[name] += of_stream
    for each, cursor in zip(compared, cursors, strict=True):
        wanted, live = as_stored(each.table, fresh[each.table.name]), cursor.fetchall()
        if live != wanted:
            try:
                live_set = set(live)
            except TypeError:
                return {}  # Lists or documents: somebody has given a column another type.
            # Where a row occurs twice, no stream counts as matching.
            differing = live_set ^ set(wanted) if len(live_set) == len(live) else live_set | set(wanted)
            of_stream = each.table.columns.index(each.table.stream or "")
            mismatched |= {row[of_stream] for row in differing}
    return {stream: len(histories[stream]) for stream_id, stream in streams.items() if stream_id not in mismatched}


@contextmanager
def _pipeline(connection: Connection) -> Generator[None]:
    """psycopg's pipeline. Of the errors of a session that breaks, the first is raised: the others only say that it broke."""
    _, handled_before, _ = sys.exc_info()
    try:
        with connection.pipeline():
            yield
    except psycopg.OperationalError as error:
        first: BaseException = error
        while isinstance(first.__context__, psycopg.Error) and first.__context__ is not handled_before:
            first = first.__context__
        raise first from None


def _stream_parameters(lanes: Mapping[UUID, int]) -> dict[str, str]:
    """The streams and their lanes, as parameters."""
    return {
        "lanes": array_literal(map(str, lanes.values())).decode(),
        "streams": array_literal(map(str, lanes)).decode(),
    }


def _place(lanes: Mapping[UUID, int], of_stream: int, unfoldable: set[UUID], row: Row) -> dict[str, Any] | None:
    stream_id = row[of_stream]
    return None if stream_id in unfoldable else {"lane": lanes[stream_id], "stream_id": stream_id}


def orphan_rows(connection: Connection, projections: Sequence[Inline]) -> Iterator[Finding]:
    """Rows of instances that have no events, or none in the lane of the row."""
    statement = template(_SQL["orphan_rows"])
    for table in (table for projection in projections for table in projection.tables):
        assert table.stream is not None, "inline rows belong to streams"
        query = statement.format(
            table=sql.Identifier(LIVE, table.name),
            stream=sql.Identifier(table.stream),
            place=identifiers((table.stream, "lane") if table.has_lane else (table.stream,)),
            and_lane=sql.SQL(" AND e.lane = t.lane" if table.has_lane else ""),
        )
        for (stream_id,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = "The table has rows of an instance that the log does not have in their lane"
            yield Finding(kind="row_extra", what=what, stream_id=stream_id, table=table.name)


def _fold_histories(
    connection: Connection, lanes: Mapping[UUID, int], compared: Sequence[ComparedTable], parameters: Mapping[str, str]
) -> Iterator[tuple[UUID, Mapping[str, list[Row]] | Finding | NewerEvent]]:
    """For each stream its rows, by table, or why it cannot be folded. `parameters`: see `_stream_parameters`."""
    query = template(_HISTORIES).format(
        payload=sql_fragments.payload(),
        weight=pages.weight(),
        bytes=sql.Literal(pages.PAGE_BYTES),
        lanes=sql.Literal(parameters["lanes"]),
        streams=sql.Literal(parameters["streams"]),
        chunk=sql.Literal(CHUNK),
    )
    with connection.cursor().copy(query) as copy:
        for stream_id, chunks in groupby(copy.rows(), key=lambda row: UUID(row[0][_ID].decode())):
            parts = (all_to_current(_history.decode(chunk)[1]) for (chunk,) in chunks)
            yield stream_id, _rows_of(stream_id, lanes[stream_id], parts, compared)


def _rows_of(
    stream_id: UUID, lane: int, parts: Iterable[Sequence[AnyEvent]], compared: Sequence[ComparedTable]
) -> Mapping[str, list[Row]] | Finding | NewerEvent:
    try:
        folds: dict[str, StreamFold] = {
            each.table.name: each.projection.begin(stream_id, lane=lane) for each in compared
        }
        for events in parts:
            for fold in folds.values():
                fold.feed(events)
        return {name: list(fold.rows()) for name, fold in folds.items()}
    except (psycopg.Error, MemoryError):
        raise  # Parts are read from the database meanwhile: a lost connection is no finding.
    except Exception as error:  # noqa: BLE001 - a forged history may break a fold anywhere
        what = f"The events of the stream are inconsistent: {type(error).__name__}"
        return newer_event(error, lane) or Finding(kind="history_broken", what=what, lane=lane, stream_id=stream_id)


def _compared_table(projection: Inline) -> ComparedTable:
    (table,) = projection.tables
    assert table.stream is not None, "inline rows belong to streams"
    rows = template(_SQL["rows"]).format(
        columns=sql.SQL(", ").join(sql.Identifier("t", name) for name in table.columns),
        table=sql.Identifier(LIVE, table.name),
        stream=sql.Identifier(table.stream),
        and_lane=sql.SQL(" AND t.lane = s.lane" if table.has_lane else ""),
    )
    return ComparedTable(projection, table, rows)
