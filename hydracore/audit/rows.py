"""Reads the rows of read tables, and compares them with the rows that the log gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.abc import Buffer
from psycopg.types.datetime import DateBinaryLoader, TimestamptzBinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from events.verification_findings import Finding
from projections.definition import Projection
from projections.tables import LIVE, Row, Table, encode_document

#: The most characters of a value that a finding shows.
_SHOWN_MAX: Final = 60

Place = Callable[[Row], Mapping[str, Any] | None]
"""Returns the place of a row as fields of a finding; None where the row is not to be reported."""


class _TolerantTimeLoader(TimestamptzBinaryLoader):
    """Loads a time that no calendar has as a value that differs from any of the log, rather than failing."""

    def load(self, data: Buffer) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _OUT_OF_RANGE


class _TolerantDateLoader(DateBinaryLoader):
    def load(self, data: Buffer) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _OUT_OF_RANGE


_OUT_OF_RANGE: Final = "a time out of range"


def lock_tables(connection: Connection, projections: Iterable[Projection]) -> None:
    """Lock the tables, so that no rebuild swaps them. It has to be the first statement of its transaction."""
    tables = [sql.Identifier(LIVE, table.name) for projection in projections for table in projection.tables]
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(tables)))


def execute_raw(connection: Connection, query: sql.Composed | bytes, parameters: Mapping[str, Any]) -> Cursor[Row]:
    """Execute a query whose documents are returned as bytes, as stored. Call it in a transaction."""
    cursor = connection.cursor(binary=True)
    # Once decoded, 1 and true would be equal.
    cursor.adapters.register_loader("json", ByteaBinaryLoader)
    return cursor.execute(query, parameters, prepare=True)


def read_rows(connection: Connection, query: sql.Composed | bytes, parameters: Mapping[str, Any]) -> list[Row]:
    """The rows of a query, including those with times that no calendar has."""
    cursor = execute_raw(connection, query, parameters)
    try:
        return cursor.fetchall()
    except psycopg.DataError:
        # Slower, because each value passes through Python.
        cursor.adapters.register_loader("timestamptz", _TolerantTimeLoader)
        cursor.adapters.register_loader("date", _TolerantDateLoader)
        return cursor.execute(query, parameters, prepare=True).fetchall()


def as_stored(table: Table, rows: list[Row]) -> list[Row]:
    """The rows of a fold, in the form in which `read_rows` returns rows."""
    for at in [table.columns.index(name) for name in table.documents]:
        rows = [(*row[:at], encode_document(row[at]), *row[at + 1 :]) for row in rows]
    return rows


def differences(table: Table, live: list[Row], fresh: list[Row], *, place: Place) -> Iterator[Finding]:
    """Findings where the served rows `live` differ from the rows `fresh` that the log gives.

    Their order does not matter.
    """
    key = [table.columns.index(name) for name in table.key]

    def by_key(rows: list[Row]) -> dict[Row, Row]:
        return {tuple(row[at] for at in key): row for row in rows}

    live_by_key, fresh_by_key = by_key(live), by_key(fresh)
    if len(live_by_key) < len(live):
        identity, count = Counter(tuple(row[at] for at in key) for row in live).most_common(1)[0]
        what = f"There are {count} rows of {_key_text(table, identity)}"
        yield from _finding("row_extra", what, table, place(live_by_key[identity]))
    if live_by_key == fresh_by_key:
        return
    for identity in sorted(live_by_key.keys() | fresh_by_key.keys(), key=str):
        actual, expected = live_by_key.get(identity), fresh_by_key.get(identity)
        if actual == expected:
            continue
        row = _key_text(table, identity)
        if actual is None:
            yield from _finding("row_missing", f"The row {row} is missing", table, place(expected or ()))
        elif expected is None:
            yield from _finding("row_extra", f"The log does not have the row {row}", table, place(actual))
        else:
            pairs = zip(table.columns, actual, expected, strict=True)
            differ = [f"{name} is {_value_text(a)} but must be {_value_text(b)}" for name, a, b in pairs if a != b]
            yield from _finding("row_differs", f"In the row {row}, {'; '.join(differ)}", table, place(actual))


def _finding(kind: str, what: str, table: Table, place: Mapping[str, Any] | None) -> Iterator[Finding]:
    if place is not None:
        yield Finding(kind=kind, what=what, table=table.name, **place)


def _key_text(table: Table, identity: Row) -> str:
    return ", ".join(f"{name} {_value_text(value)}" for name, value in zip(table.key, identity, strict=True))


def _value_text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."
