"""The files that an export can be: JSON Lines, which everything reads, and Parquet, which analytics read."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from hydracore.audit import export_parquet
from hydracore.audit.errors import NotAnExport, RecordUnreadable
from hydracore.audit.export_records import FORMAT, NOT_CANONICAL, AnyRecord, Header, NumberedRecord, is_newer_format
from hydracore.json_input import JSON_ERRORS

Format = Literal["jsonl", "parquet"]

#: Takes a record and its line.
WriteRecord = Callable[[AnyRecord, bytes], None]

#: The most bytes of a line, far more than any record has.
_LINE_MAX: Final = 64 * 1024 * 1024

_decoder: Final = msgspec.json.Decoder(AnyRecord)
_encode: Final = msgspec.json.Encoder().encode


@contextmanager
def open_writer(path: Path, form: Format) -> Generator[WriteRecord]:
    """Open a new file. Yields a function that writes a record. Raises `OSError`, `ParquetMissing` and `ParquetBroken`."""
    if form == "parquet":
        with export_parquet.open_writer(path) as write:
            yield write
        return
    with path.open("wb") as file:
        yield lambda _, line: _ignore(file.write(line))


def read_records(path: Path) -> Iterator[NumberedRecord]:
    """The records of a file in either format. The first is the header, unless somebody has removed it.

    Raises `OSError`, `NotAnExport` where the file is no export that this version can read,
    `ParquetMissing`, `ParquetBroken`, and `RecordUnreadable` where it is damaged.
    """
    # Opened only once: what was read from a pipe cannot be read again.
    with path.open("rb") as file:
        is_parquet = file.peek().startswith(export_parquet.MAGIC)
        if is_parquet and not file.seekable():
            raise OSError(errno.ESPIPE, "a Parquet file cannot be read from a pipe: give a regular file", str(path))
        records = export_parquet.read_records(path) if is_parquet else _lines(file)
        try:
            first = next(records)
        except StopIteration:
            raise NotAnExport(path) from None
        except RecordUnreadable:
            if is_parquet:  # Without its end, nothing of such a file can be read.
                raise
            raise NotAnExport(path) from None
        header = first.record
        if isinstance(header, Header):
            if header.format != FORMAT:
                raise NotAnExport(path)
            if is_newer_format(header):
                raise NotAnExport(path, made_by=header.made_by)
        yield first
        yield from records


def _lines(file: BinaryIO) -> Iterator[NumberedRecord]:
    number = 0
    while line := file.readline(_LINE_MAX):
        number += 1
        try:
            # A document that is cut off cannot be decoded, and a complete one needs no line feed behind it.
            record = _decoder.decode(line)
        except JSON_ERRORS as error:
            what = str(error) if line.endswith(b"\n") else "the line is cut off"
            raise RecordUnreadable(number, what) from None
        # Of a field that occurs twice, the last one is decoded and checked here, but other readers may take the first.
        if not is_newer_format(record) and _encode(record) != line.removesuffix(b"\n"):
            raise RecordUnreadable(number, NOT_CANONICAL)
        yield NumberedRecord(number, record)


def _ignore(_: int) -> None:
    """Drop what a file's `write` returns: the number of bytes, which is always all of them."""
