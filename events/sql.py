"""Loads SQL from `.sql` files with named statements, which stand beside the modules that use them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import LiteralString, cast

from psycopg import sql


class Statements:
    """The named statements of one `.sql` file, as bytes ready for psycopg.

    A block begins with a line `-- name: the_name` and ends at the next one. Asking for a name that is not there is a
    `KeyError` at import time, as the statements are looked up into module constants.
    """

    def __init__(self, package: str, filename: str) -> None:
        text = resources.files(package).joinpath(filename).read_text()
        self._blocks: dict[str, bytes] = {}
        for block in text.split("-- name: ")[1:]:
            line, _, statement = block.partition("\n")
            name = line.strip()
            assert name not in self._blocks, f"{filename}: {name} twice"
            self._blocks[name] = statement.strip().rstrip(";").encode()

    def __getitem__(self, name: str) -> bytes:
        return self._blocks[name]


def template(statement: bytes) -> sql.SQL:
    """A statement of such a file whose `{placeholders}` are to be filled by `format`. psycopg accepts literals only, and this is as fixed."""
    return sql.SQL(cast("LiteralString", statement.decode()))


def identifiers(names: Iterable[str]) -> sql.Composed:
    """Names of columns or tables, quoted and separated by commas."""
    return sql.SQL(", ").join(map(sql.Identifier, names))
