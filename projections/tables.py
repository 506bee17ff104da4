"""What a projection says about its tables, so that a build can make, fill and compare them without knowing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

#: The schema in which what is served lives, next to the log.
LIVE = "public"

_encode = msgspec.json.Encoder(decimal_format="string").encode

#: The options of COPY with which it takes what `line` gives. The encoder makes such text many times faster than a program.
COPY_FORMAT = "FORMAT csv, NULL 'null', QUOTE '\"', ESCAPE '\\', ENCODING 'UTF8'"

#: What a column of type json holds: text in a row of COPY.
_DOCUMENTS = frozenset({dict, list, tuple})


class Table(NamedTuple):
    """`columns` in the order of the rows that a fold gives; `key` names the primary key's.

    `stream`: the column with the id of the instance that a row belongs to; None where rows add up over instances.
    `laned`: whether there is a column `lane`. `changed`: columns that mean something else than in the version before,
    which a comparison of the two leaves out.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    stream: str | None
    laned: bool = True
    changed: tuple[str, ...] = ()


Row = tuple[Any, ...]
Rows = Mapping[str, Iterable[Row]]
"""Rows by the name of their table."""


def line(row: Row) -> bytes:
    """The row as `COPY_FORMAT` has it, which is a JSON array without its brackets wherever nothing is escaped but quotes."""
    text = _encode([_encode(value).decode() if type(value) in _DOCUMENTS else value for value in row])[1:-1]
    # Looked at once for the whole row: hardly ever is there anything else to escape.
    if text.count(b"\\") != text.count(b'\\"'):
        text = b",".join([_encode(value) if value is None or type(value) is bool else _quoted(value) for value in row])
    return text + b"\n"


def _quoted(value: Any) -> bytes:
    text = value if type(value) is str else _encode(value).decode().strip('"')
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def records(table: Table, rows: Rows) -> str:
    """The rows of `table` as a JSON array of objects, for a statement that takes them with `json_to_recordset`."""
    return _encode([dict(zip(table.columns, row, strict=True)) for row in rows[table.name]]).decode()
