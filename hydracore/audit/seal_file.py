"""The copy of the seals outside the database: a JSON document a line, only ever added to.

Whoever can rewrite the database cannot rewrite this; it belongs on another machine's disk or in a bucket that keeps what
it was given.
"""

from __future__ import annotations

import os
from pathlib import Path

from events.seal import Seal
from hydracore.audit.lines_file import LINE_MAX, LinesFile


class SealFile(LinesFile[Seal]):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Seal)

    def last_number(self) -> int:
        """The number of the newest seal in the file, 0 where there is none. Raises `OSError`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * LINE_MAX))
                seals = [self.parse(line) for line in file.readlines()]
        except FileNotFoundError:
            return 0
        return max((seal.number for seal in seals if seal is not None), default=0)
