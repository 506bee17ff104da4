"""The copy of the seals outside the database: a JSON document a line, only ever added to.

Whoever can rewrite the database cannot rewrite this; it belongs on another machine's disk or in a bucket that keeps what
it was given.
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from events.seal import Seal
from events.sql import Statements
from hydracore.audit.errors import CopyMissing
from hydracore.audit.lines_file import LINE_MAX, LinesFile
from hydracore.wording import plural

_ANY_SEAL = Statements("hydracore.audit", "sealing.sql")["any_seal"]


class SealFile(LinesFile[Seal]):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Seal)

    @property
    def notes(self) -> list[str]:
        """What whoever has read it should know."""
        if not self.passed_over:
            return []
        lines = plural(self.passed_over, "line")
        return [f"{lines} of {self.path} could not be read: damaged, or cut off by a crash"]

    def last(self) -> Seal | None:
        """The newest seal in the file, None where there is none. Raises `OSError`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * LINE_MAX))
                seals = [seal for line in file.readlines() if (seal := self.parse(line)) is not None]
            # What is not a seal may stand at the end, and much of it.
            return max(seals or self.read(), key=lambda seal: seal.number, default=None)
        except FileNotFoundError:
            return None

    def last_number(self) -> int:
        """The number of the newest seal in the file, 0 where there is none. Raises `OSError`."""
        last = self.last()
        return 0 if last is None else last.number


def kept_copy(path: Path, conninfo: str) -> SealFile | None:
    """The copy that is kept there; None where there is nothing yet that could have been copied.

    Raises `CopyMissing`, `OSError` and psycopg's errors.
    """
    if not path.exists():
        with psycopg.connect(conninfo) as connection:
            if connection.execute(_ANY_SEAL).fetchone() == (True,):
                raise CopyMissing(path)
        return None
    return SealFile(path)
