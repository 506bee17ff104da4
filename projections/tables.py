"""Descriptions of a projection's tables, from which a build can create, fill and compare them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

#: The schema of the live tables, which also holds the log.
LIVE = "public"

#: Encodes documents exactly as appends do, because comparisons compare their text.
encode_document = msgspec.json.Encoder(decimal_format="string").encode


class Table(NamedTuple):
    """One table of a projection.

    - `key`: the columns of the primary key.
    - `columns`: in the order of the rows that a fold gives.
    - `stream`: the column with the id of the instance that a row belongs to; None where rows add up over instances.
    - `version`: the column with the version of that instance's stream at which the row was written last; None without
      such a column.
    - `has_lane`: whether there is a column `lane`.
    - `documents`: the columns that hold JSON.
    - `changed`: columns that mean something else than in the previous version. A comparison with that version leaves
      them out; if a key column is among them, it leaves out the table.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    stream: str | None
    version: str | None = None
    has_lane: bool = True
    documents: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


Row = tuple[Any, ...]
Rows = Mapping[str, Iterable[Row]]
"""Rows by the name of their table."""


def records(table: Table, rows: Rows) -> bytes:
    """The rows of `table` as a JSON array of objects, for a statement that takes them with `json_to_recordset`."""
    return encode_document([dict(zip(table.columns, row, strict=True)) for row in rows[table.name]])
