"""What a projection says about its tables, so that a build can make, fill and compare them without knowing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

#: The schema in which what is served lives, next to the log.
LIVE = "public"

#: Documents are written as appends write them: what is compared is their text.
encode_document = msgspec.json.Encoder(decimal_format="string").encode


class Table(NamedTuple):
    """`columns` in the order of the rows that a fold gives; `key` names the primary key's.

    `stream`: the column with the id of the instance that a row belongs to; None where rows add up over instances.
    `version`: the column with the version of that instance's stream at which a row was written last; None where there is none.
    `laned`: whether there is a column `lane`. `documents`: the columns that hold JSON. `changed`: columns that mean something
    else than in the version before, which a comparison of the two leaves out. Where the key is another, nothing can be compared.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    stream: str | None
    version: str | None = None
    laned: bool = True
    documents: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


Row = tuple[Any, ...]
Rows = Mapping[str, Iterable[Row]]
"""Rows by the name of their table."""


def records(table: Table, rows: Rows) -> bytes:
    """The rows of `table` as a JSON array of objects, for a statement that takes them with `json_to_recordset`."""
    return encode_document([dict(zip(table.columns, row, strict=True)) for row in rows[table.name]])
