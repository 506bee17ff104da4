"""Drift: where the live tables differ from what the log says, row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, sql

from events.sql import Statements, template
from projections.definition import Projection
from projections.generations import Generation
from projections.tables import LIVE, Table

_SQL = Statements("projections", "drift.sql")
_COLUMNS = _SQL["columns"]

#: The most differing rows that a comparison lists. It counts all of them.
DRIFT_MAX = 1_000

#: The columns of a row by name, each as JSON text; None for NULL.
_Row = dict[str, str | None]

#: Types without an equality operator. Their values are compared as text.
_AS_TEXT = frozenset({"json"})


class Drift(msgspec.Struct, frozen=True):
    """One row that differs: its differing fields, as the live table has them and as the log gives them.

    `live`: None where the live table lacks the row. `fresh`: None where the log does not give the row.
    """

    table: str
    key: dict[str, Any]
    live: dict[str, Any] | None
    fresh: dict[str, Any] | None


class Comparison(msgspec.Struct):
    """How many rows were compared, how many differ, and the first `DRIFT_MAX` of those.

    `left_out`: tables that were not compared, because the two versions identify their rows by other columns.
    """

    rows: int = 0
    drifted: int = 0
    drift: list[Drift] = msgspec.field(default_factory=list[Drift])
    left_out: list[str] = msgspec.field(default_factory=list[str])


class Scope(NamedTuple):
    """What is compared; None for all.

    `streams`: of tables with a stream column, the rows of these streams that were written after the given version.
    `lanes`: of other tables, the rows of these lanes.
    """

    lanes: Collection[int] | None = None
    streams: Mapping[tuple[int, UUID], int] | None = None


async def compare(
    connection: AsyncConnection, projection: Projection, build: Generation, live: Generation, scope: Scope
) -> Comparison:
    """Compare the live tables with those of `build`, in the columns that both have and that mean the same in both.

    Both must be at the same position in the log, as this transaction sees them. Between builds of the same version, all
    columns mean the same.
    """
    result = Comparison()
    for table in projection.tables:
        columns = await _columns(connection, table, build)
        if not columns:
            continue  # The live version does not have the table.
        changed = table.changed if live.version != build.version else ()
        same = {name: kind for name, kind in columns.items() if name not in changed}
        if not same.keys() >= _columns_needed(table):
            result.left_out.append(table.name)
            continue
        parts = _parts(table, build, scope, same)
        lists = _lists(scope)
        counted = await connection.execute(_query(parts, what=_SQL["count"], only=b""), lists)
        counts = await counted.fetchone()
        assert counts is not None
        result.rows += counts[0]
        result.drifted += counts[1]
        room = DRIFT_MAX - len(result.drift)
        if counts[1] and room:
            only = b"WHERE {differs} ORDER BY {key} LIMIT " + str(room).encode()
            pairs = await connection.execute(_query(parts, what=_SQL["rows"], only=only), lists)
            for texts in await pairs.fetchall():
                of_live, of_fresh = (None if row is None else dict(zip(same, row, strict=True)) for row in texts)
                result.drift.append(_drift(table, of_live, of_fresh))
    return result


def _drift(table: Table, live: _Row | None, fresh: _Row | None) -> Drift:
    either = live or fresh or {}
    # Compared as PostgreSQL writes them: a document may differ in its text alone, a number by less than a float holds.
    names = either if live is None or fresh is None else [name for name in live if live[name] != fresh[name]]
    key = {name: _value(either[name]) for name in table.key}
    return Drift(table.name, key, _values(live, names), _values(fresh, names))


def _values(row: _Row | None, names: Iterable[str]) -> dict[str, Any] | None:
    return None if row is None else {name: _value(row[name]) for name in names}


def _value(text: str | None) -> Any:
    """What a JSON text stands for; the text itself where Python has no such value, as for a number beyond all floats."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


async def _columns(connection: AsyncConnection, table: Table, build: Generation) -> dict[str, str]:
    """The columns that both sides have, with their types in the live table."""
    parameters = {"live": LIVE, "fresh": build.schema, "table": table.name}
    return dict(await (await connection.execute(_COLUMNS, parameters)).fetchall())


def _columns_needed(table: Table) -> set[str]:
    """The columns that a comparison needs: those that identify a row, and those that a scope selects by."""
    columns = {*table.key, "lane"} if table.has_lane else {*table.key}
    return columns | {name for name in (table.stream, table.version) if name is not None}


def _parts(table: Table, build: Generation, scope: Scope, columns: Mapping[str, str]) -> dict[str, sql.Composable]:
    """The parts of the query that compares one table in `columns`."""

    def fields(side: str) -> sql.Composed:
        return _list(
            sql.SQL("{}.{}{}").format(
                sql.Identifier(side), sql.Identifier(name), sql.SQL("::text" if kind in _AS_TEXT else "")
            )
            for name, kind in columns.items()
        )

    def texts(side: str) -> sql.Composed:
        return _list(
            sql.SQL("to_json({}.{})::text").format(sql.Identifier(side), sql.Identifier(name)) for name in columns
        )

    same = [sql.SQL("l.{0} = f.{0}").format(sql.Identifier(name)) for name in table.key]
    return {
        "columns": _list(map(sql.Identifier, columns)),
        "live": sql.Identifier(LIVE, table.name),
        "fresh": sql.Identifier(build.schema, table.name),
        "within": _scope_clause(table, scope),
        "same_key": sql.SQL(" AND ").join(same),
        "key": _list(sql.SQL("coalesce(l.{0}, f.{0})").format(sql.Identifier(name)) for name in table.key),
        "differs": template(_SQL["differs"]).format(of_live=fields("l"), of_fresh=fields("f")),
        "texts_of_live": texts("l"),
        "texts_of_fresh": texts("f"),
    }


def _scope_clause(table: Table, scope: Scope) -> sql.Composable:
    """The clause after the table `t` that limits a query to `scope`."""
    if scope.streams is not None and table.stream is not None:
        conditions: list[sql.Composable] = [sql.SQL("t.{} = s.stream_id").format(sql.Identifier(table.stream))]
        if table.has_lane:
            conditions.append(sql.SQL("t.lane = s.stream_lane"))
        if table.version is not None:
            conditions.append(sql.SQL("t.{} > s.stream_after").format(sql.Identifier(table.version)))
        return sql.SQL(
            " JOIN unnest(%(stream_lanes)s::smallint[], %(streams)s::uuid[], %(after)s::integer[])"
            " AS s (stream_lane, stream_id, stream_after) ON {}"
        ).format(sql.SQL(" AND ").join(conditions))
    if scope.lanes is not None and table.has_lane:
        return sql.SQL(" WHERE t.lane = ANY (%(lanes)s::smallint[])")
    return sql.SQL("")


def _lists(scope: Scope) -> dict[str, Any]:
    streams = scope.streams or {}
    return {
        "lanes": sorted(scope.lanes or ()),
        "stream_lanes": [lane for lane, _ in streams],
        "streams": [stream_id for _, stream_id in streams],
        "after": list(streams.values()),
    }


def _query(parts: dict[str, sql.Composable], *, what: bytes, only: bytes) -> sql.Composed:
    return template(_SQL["pairs"]).format(
        **parts, what=template(what).format(**parts), only=template(only).format(**parts)
    )


def _list(items: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(items)
