"""What a projection says about its tables, so that a build can make, fill and compare them without knowing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

#: The schema in which what is served lives, next to the log.
LIVE = "public"

_encode = msgspec.json.Encoder(decimal_format="string").encode

#: What COPY's text format cannot take as it is (PostgreSQL documentation, "COPY", file formats).
_NULL = "\\N"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


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


def line(row: Row) -> str:
    """The row in the text format of COPY."""
    text = "\t".join([value if type(value) is str else _text(value) for value in row])
    # Looked at once for the whole row: hardly ever is there anything to escape.
    if text.count("\\") != row.count(None) or text.count("\t") != len(row) - 1 or "\n" in text or "\r" in text:
        text = "\t".join([_NULL if value is None else _text(value).translate(_ESCAPES) for value in row])
    return text + "\n"


def _text(value: Any) -> str:
    if value is None:
        return _NULL
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (dict, list)):
        return _encode(value).decode()
    return str(value)


def records(table: Table, rows: Rows) -> str:
    """The rows of `table` as a JSON array of objects, for a statement that takes them with `json_to_recordset`."""
    return _encode([dict(zip(table.columns, row, strict=True)) for row in rows[table.name]]).decode()
