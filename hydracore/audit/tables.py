"""Compares the read tables with what the log gives: whole histories folded anew, against the rows that are served.

It runs in the transaction in which the lane was verified. An append writes its events and its rows together, so in one
snapshot both must agree, however busy the writers are. Streams are taken a few hundred at a time, so that memory holds
no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection, sql

from events.finding import FINDINGS_MAX, Finding
from events.sql import Statements
from events.types import AnyEvent
from events.upcast import read
from projections.definition import Inline
from projections.registry import all_versions, projections
from projections.tables import LIVE, Row, Table

_SQL = Statements("hydracore.audit", "tables.sql")
_HISTORIES = _SQL["histories"]
_LIVE_VERSIONS = _SQL["live_versions"]

#: How many streams are folded and compared at a time.
STREAMS_MAX = 500

#: How much of a value a finding shows.
_SHOWN_MAX = 60


class Compared(NamedTuple):
    """A table with the statement that reads its rows, and the projection that folds them."""

    projection: Inline
    table: Table
    rows: sql.Composed

    @property
    def key(self) -> list[int]:
        return [self.table.columns.index(name) for name in self.table.key]


def live_inline(connection: Connection) -> tuple[list[Inline], list[str]]:
    """The inline projections as they are served, and the names of those whose live version this code does not have."""
    live: dict[str, int] = dict(connection.execute(_LIVE_VERSIONS).fetchall())
    known = all_versions()
    unknown = sorted(name for name, version in live.items() if version not in known.get(name, {}))
    served = [known[name][version] for name, version in live.items() if name not in unknown]
    return [projection for projection in served if isinstance(projection, Inline)], unknown


def lock_tables(connection: Connection) -> None:
    """Hold the tables against a rebuild's swap. To be called before the transaction's first look at anything."""
    for projection in projections().values():
        if isinstance(projection, Inline):
            for table in projection.tables:
                name = sql.Identifier(LIVE, table.name)
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(name))


def compare_streams(
    connection: Connection,
    lane: int,
    versions: Mapping[bytes, int],
    served: Sequence[Inline],
    progress: Callable[[int], None],
) -> Iterator[Finding]:
    """Where the rows of these streams of a lane are not what their histories give.

    `versions`: how many events each stream has, by its id. `progress` is told how many events were folded.
    """
    compared = [_compared(projection) for projection in served]
    streams = sorted(versions)
    for at in range(0, len(streams), STREAMS_MAX):
        part = streams[at : at + STREAMS_MAX]
        parameters = {"lane": lane, "streams": [UUID(bytes=stream) for stream in part]}
        fresh: dict[str, list[Row]] = {each.table.name: [] for each in compared}
        unfoldable: set[UUID] = set()
        for stream_id, *history in connection.execute(_HISTORIES, parameters, binary=True, prepare=True):
            rows = _fold(lane, stream_id, history, compared)
            if isinstance(rows, Finding):
                yield rows
                unfoldable.add(stream_id)
                continue
            for name, of_stream in rows.items():
                fresh[name] += of_stream
        for each in compared:
            live: list[Row] = connection.execute(each.rows, parameters, binary=True, prepare=True).fetchall()
            yield from _differences(lane, each, live, fresh[each.table.name], unfoldable)
        progress(sum(versions[stream] for stream in part))


def strangers(connection: Connection, served: Sequence[Inline]) -> Iterator[Finding]:
    """Rows of instances that never were."""
    statement = _SQL["rows_of_strangers"].decode()
    for table in (table for projection in served for table in projection.tables):
        assert table.stream is not None, "inline rows belong to streams"
        query = _sql(statement).format(table=sql.Identifier(LIVE, table.name), stream=sql.Identifier(table.stream))
        for (stream_id,) in connection.execute(query, {"limit": FINDINGS_MAX}):
            what = "The table has rows of an instance of which the log knows nothing"
            yield Finding(kind="row_extra", what=what, stream_id=stream_id, table=table.name)


def _fold(
    lane: int, stream_id: UUID, history: list[list[Any]], compared: Sequence[Compared]
) -> Mapping[str, list[Row]] | Finding:
    """The rows that one stream gives, by table; or what is wrong with it."""
    try:
        events: list[AnyEvent] = [
            read(payload, tag=tag, schema_version=version) for tag, version, payload in zip(*history, strict=True)
        ]
        rows: dict[str, list[Row]] = {}
        for each in compared:
            fold = each.projection.begin(stream_id, lane=lane)
            fold.feed(events)
            rows[each.table.name] = list(fold.rows())
    except Exception as error:  # noqa: BLE001 - a history that somebody made up may break a fold anywhere
        what = f"The history of the stream makes no sense: {type(error).__name__}"
        return Finding(kind="history_broken", what=what, lane=lane, stream_id=stream_id)
    return rows


def _differences(
    lane: int, compared: Compared, live: list[Row], fresh: list[Row], unfoldable: set[UUID]
) -> Iterator[Finding]:
    table, key = compared.table, compared.key
    there = {tuple(row[at] for at in key): row for row in live}
    wanted = {tuple(row[at] for at in key): row for row in fresh}
    if there == wanted:
        return
    of_stream = table.columns.index(table.stream or "")
    for identity in sorted(there.keys() | wanted.keys(), key=str):
        has, gives = there.get(identity), wanted.get(identity)
        if has == gives:
            continue
        stream_id = (has or gives or ())[of_stream]
        if stream_id in unfoldable:
            continue
        row = ", ".join(f"{name} {value}" for name, value in zip(table.key, identity, strict=True))
        place: dict[str, Any] = {"lane": lane, "stream_id": stream_id, "table": table.name}
        if has is None:
            yield Finding(kind="row_missing", what=f"The row {row} is missing", **place)
        elif gives is None:
            yield Finding(kind="row_extra", what=f"The log gives no row {row}", **place)
        else:
            pairs = zip(table.columns, has, gives, strict=True)
            differ = [f"{name} is {_shown(a)} and must be {_shown(b)}" for name, a, b in pairs if a != b]
            yield Finding(kind="row_differs", what=f"In the row {row}, {'; '.join(differ)}", **place)


def _compared(projection: Inline) -> Compared:
    (table,) = projection.tables
    assert table.stream is not None, "inline rows belong to streams"
    rows = _sql(_SQL["rows"].decode()).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, table.columns)),
        table=sql.Identifier(LIVE, table.name),
        stream=sql.Identifier(table.stream),
        and_lane=sql.SQL(" AND lane = %(lane)s" if table.laned else ""),
    )
    return Compared(projection, table, rows)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."


def _sql(text: str) -> sql.SQL:
    statement: Any = text
    return sql.SQL(statement)
