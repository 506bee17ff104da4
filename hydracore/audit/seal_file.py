"""The copy of the seals outside the database: an append-only file with one JSON document per line.

It belongs on another machine's disk, or in a bucket that keeps what it was given, so that whoever can
rewrite the database cannot rewrite the copy.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psycopg

from events.seal import Seal
from events.sql import Statements
from hydracore.audit.errors import CopyMissing
from hydracore.audit.jsonl_file import LINE_MAX, JsonLinesFile
from hydracore.wording import plural

_ANY_SEAL = Statements("hydracore.audit", "sealing.sql")["any_seal"]


class SealFile(JsonLinesFile[Seal]):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Seal)

    @property
    def notes(self) -> list[str]:
        """What a report notes about the last reading: lines that could not be read."""
        if not self.unreadable_lines:
            return []
        lines = plural(self.unreadable_lines, "line")
        return [f"{lines} of {self.path} could not be read: damaged, or cut off by a crash"]

    def last(self) -> Seal | None:
        """The newest seal in the file, None where there is none. Raises `OSError`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * LINE_MAX))
                seals = [seal for line in file.readlines() if (seal := self.parse(line)) is not None]
            # The end may hold many bytes that are no seals: then the whole file is read.
            return max(seals or self.read(), key=lambda seal: seal.number, default=None)
        except FileNotFoundError:
            return None

    def last_number(self) -> int:
        """The number of the newest seal in the file, 0 where there is none. Raises `OSError`."""
        last = self.last()
        return 0 if last is None else last.number


def existing_copy(path: Path, conninfo: str) -> SealFile | None:
    """The copy at `path`; None where there is no file and the database has no seals yet.

    Raises `CopyMissing` where it has seals but there is no file, `OSError` and psycopg's errors.
    """
    if not path.exists():
        # Without the table there are no seals. Whoever verifies reports that.
        with suppress(psycopg.errors.UndefinedTable), psycopg.connect(conninfo) as connection:
            if connection.execute(_ANY_SEAL).fetchone() == (True,):
                raise CopyMissing(path)
        return None
    return SealFile(path)
