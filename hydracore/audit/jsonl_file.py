"""An append-only file with one JSON document per line, for records that must outlive the database.

A line that a crash left incomplete is skipped: its writer had no confirmation yet, and writes it again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from hydracore.files import disk_errors_named, sync_folder
from hydracore.json_input import JSON_ERRORS

T = TypeVar("T", bound=msgspec.Struct)

#: The most bytes of a line, far more than any document has. A longer line is skipped.
LINE_MAX = 65_536

_encoder = msgspec.json.Encoder()


class JsonLinesFile(Generic[T]):
    def __init__(self, path: Path, document_type: type[T]) -> None:
        self.path = path
        #: The number of lines that could not be decoded when the file was last read.
        self.unreadable_lines = 0
        self._decoder = msgspec.json.Decoder(document_type)

    def read(self, *, upto: int | None = None) -> Iterator[T]:
        """The documents in the file, in order. `upto`: only those that begin before this byte. Raises `OSError`."""
        self.unreadable_lines = 0
        is_inside_line = False
        with self.path.open("rb") as file:
            while (upto is None or file.tell() < upto) and (line := file.readline(LINE_MAX)):
                document = self.parse(line)
                if document is not None:
                    yield document
                elif not is_inside_line and not line.isspace():
                    self.unreadable_lines += 1
                is_inside_line = not line.endswith(b"\n")

    def append(self, documents: Iterable[T]) -> None:
        """Add documents and wait until they are on the disk.

        Raises `OSError`, also where the file is not a regular one: a pipe or a device keeps nothing.
        """
        is_new = not self.path.exists()
        if not is_new and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
        with disk_errors_named(self.path), self.path.open("ab") as file:
            # A line feed ends an incomplete line; an empty line is ignored.
            file.write(
                b"".join([b"\n" if self._is_torn() else b"", *(_encoder.encode(each) + b"\n" for each in documents)])
            )
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)

    def sync(self) -> None:
        """Wait until the whole file is on the disk: its last writer may have been killed before. Raises `OSError`."""
        with disk_errors_named(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self.path.parent)

    def parse(self, line: bytes) -> T | None:
        """The document in a line; None where it cannot be decoded."""
        try:
            return self._decoder.decode(line)
        except JSON_ERRORS:
            return None

    def _is_torn(self) -> bool:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
