"""The copy of the seals outside the database: a JSON document a line, only ever added to.

Whoever can rewrite the database cannot rewrite this; it belongs on another machine's disk or in a bucket that keeps what
it was given. A line that a crash left half done is passed over, because its seal is written again behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from events.seal import Seal

_decoder = msgspec.json.Decoder(Seal)
_encoder = msgspec.json.Encoder()

#: Far more than a line has: what is longer is no seal.
_LINE_MAX = 65_536


class SealFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[Seal]:
        """The seals in the order of the file. Raises `OSError`."""
        with self.path.open("rb") as file:
            while line := file.readline(_LINE_MAX):
                try:
                    yield _decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    continue

    def last_number(self) -> int:
        """The number of the newest seal in the file, 0 where there is none. Raises `OSError`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * _LINE_MAX))
                lines = file.readlines()
        except FileNotFoundError:
            return 0
        return max((_number(line) for line in lines), default=0)

    def append(self, seals: Iterable[Seal]) -> None:
        """Add seals and wait until they are on the disk. Raises `OSError`."""
        with self.path.open("ab") as file:
            # Ends a line that was left half done; an empty line means nothing.
            file.write(
                b"".join([b"\n" if self._is_torn() else b"", *(_encoder.encode(seal) + b"\n" for seal in seals)])
            )
            file.flush()
            os.fsync(file.fileno())

    def _is_torn(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _number(line: bytes) -> int:
    try:
        return _decoder.decode(line).number
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0
