"""COPY rows into a table, in the binary format, which spares both sides from writing and reading text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, sql
from psycopg.types.json import set_json_dumps

from events.sql import identifiers
from projections.tables import Row, Table, encode_document


def copy_in(connection: Connection[Any], table: Table, rows: Iterable[Row]) -> None:
    """Add `rows`, each with the values of the table's columns in their order."""
    with connection.cursor() as cursor:
        types = _types(cursor.execute(_column_query(table)))
        with cursor.copy(_copy(table)) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)


async def copy_in_async(connection: AsyncConnection, table: Table, rows: Iterable[Row]) -> None:
    """The same on an asynchronous connection."""
    async with connection.cursor() as cursor:
        types = _types(await cursor.execute(_column_query(table)))
        async with cursor.copy(_copy(table)) as copy:
            copy.set_types(types)
            for row in rows:
                await copy.write_row(row)


def _types(cursor: Cursor[Any] | AsyncCursor[Any]) -> list[int]:
    """The types of the columns, which COPY does not give. Also makes the cursor encode documents."""
    set_json_dumps(encode_document, cursor)
    assert cursor.description is not None, "a query has columns"
    return [column.type_code for column in cursor.description]


def _column_query(table: Table) -> sql.Composed:
    return sql.SQL("SELECT {} FROM {} LIMIT 0").format(identifiers(table.columns), sql.Identifier(table.name))


def _copy(table: Table) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(table.name), identifiers(table.columns)
    )
