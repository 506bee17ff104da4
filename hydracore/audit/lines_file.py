"""A file of JSON documents, one a line, only ever added to: what must outlive the database lies in such files outside it.

A line that a crash left half done is passed over: whoever wrote it was not told that it is there, and writes it again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from hydracore.files import naming, sync_folder
from hydracore.reading import UNREADABLE

T = TypeVar("T", bound=msgspec.Struct)

#: Far more than a line has: what is longer is none.
LINE_MAX = 65_536

_encoder = msgspec.json.Encoder()


class LinesFile(Generic[T]):
    def __init__(self, path: Path, of: type[T]) -> None:
        self.path = path
        #: How many lines the last reading could make nothing of.
        self.passed_over = 0
        self._decoder = msgspec.json.Decoder(of)

    def read(self) -> Iterator[T]:
        """What is in the file, in its order. Raises `OSError`."""
        self.passed_over = 0
        is_begun = False
        with self.path.open("rb") as file:
            while line := file.readline(LINE_MAX):
                document = self.parse(line)
                if document is not None:
                    yield document
                elif not is_begun and not line.isspace():
                    self.passed_over += 1
                is_begun = not line.endswith(b"\n")

    def append(self, documents: Iterable[T]) -> None:
        """Add documents and wait until they are on the disk. Raises `OSError`, also where it is no regular file: a pipe or a
        device keeps nothing.
        """
        is_new = not self.path.exists()
        if not is_new and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
        with naming(self.path), self.path.open("ab") as file:
            # Ends a line that was left half done; an empty line means nothing.
            file.write(
                b"".join([b"\n" if self._is_torn() else b"", *(_encoder.encode(each) + b"\n" for each in documents)])
            )
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)

    def sync(self) -> None:
        """Wait until all that is in the file is on the disk: whoever wrote it may have been killed before. Raises `OSError`."""
        with naming(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self.path.parent)

    def parse(self, line: bytes) -> T | None:
        """What a line says, None where it is half done."""
        try:
            return self._decoder.decode(line)
        except UNREADABLE:
            return None

    def _is_torn(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
