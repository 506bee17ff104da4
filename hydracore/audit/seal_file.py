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
