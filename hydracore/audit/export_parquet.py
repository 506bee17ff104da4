"""An export as one Parquet table: a column per field of any record, `kind` first, null where a kind has no such field.

Needs pyarrow, which is an extra (`hydracore[parquet]`): a control plane that exports nothing can do without its 50 MB.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints
from uuid import UUID

import msgspec

from hydracore.audit.errors import ParquetBroken, ParquetMissing, RecordUnreadable
from hydracore.audit.export_records import NOT_CANONICAL, AnyRecord, NumberedRecord, Record, is_newer_format

#: How a Parquet file begins.
MAGIC: Final = b"PAR1"

#: The bytes of a row group, measured in JSON. A writer keeps them in memory; readers keep far less.
_GROUP_BYTES_MAX: Final = 16 * 1024 * 1024
_ROWS_READ: Final = 500

_KIND: Final = "kind"


@contextmanager
def open_writer(path: Path) -> Generator[Callable[[AnyRecord, bytes], None]]:
    """Open a new file. Yields a function that writes a record.

    Raises `ParquetMissing`, `ParquetBroken`, `MemoryError` and `OSError`.
    """
    arrow, parquet = _import_pyarrow()
    schema = _schema(arrow)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        buffer = _Buffer(lambda rows: writer.write_table(arrow.Table.from_pylist(rows, schema=schema)))
        yield buffer.add
        buffer.flush()


class _Buffer:
    """Collects rows until there are enough of them for a row group."""

    def __init__(self, write: Callable[[list[dict[str, Any]]], None]) -> None:
        self._write = write
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, record: AnyRecord, line: bytes) -> None:
        self._rows.append(_row(record))
        self._bytes += len(line)
        if self._bytes >= _GROUP_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._write(self._rows)
        self._rows, self._bytes = [], 0


def read_records(path: Path) -> Iterator[NumberedRecord]:
    """The records of a file.

    Raises `ParquetMissing`, `ParquetBroken`, `OSError`, `MemoryError`, and `RecordUnreadable` where the file is damaged.
    """
    arrow, parquet = _import_pyarrow()
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names: list[str] = file.schema_arrow.names
            if repeated := next((name for name in names if names.count(name) > 1), None):
                raise RecordUnreadable(1, f"{repeated} appears more than once")
            # Without threads: where none can be started, the file would seem damaged.
            for batch in file.iter_batches(batch_size=_ROWS_READ, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield NumberedRecord(number, _record(number, row))
    except MemoryError:
        raise  # Arrow's own `MemoryError` is an `ArrowException`, too.
    except (arrow.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        # pyarrow's errors, and those of texts that are not UTF-8 and of times that no calendar has.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RecordUnreadable(number + 1, str(error).partition("\n")[0]) from None


def _record(number: int, row: dict[str, Any]) -> AnyRecord:
    given = {name: value for name, value in row.items() if value is not None}
    record = msgspec.convert(given, AnyRecord)
    # An id in capitals is the same here, but not for other readers that search for it.
    if not is_newer_format(record) and given != {
        name: value for name, value in _row(record).items() if value is not None
    }:
        raise RecordUnreadable(number, NOT_CANONICAL)
    return record


def _row(record: AnyRecord) -> dict[str, Any]:
    row = msgspec.structs.asdict(record)
    row = {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}
    return {_KIND: record.__struct_config__.tag, **row}


def _schema(arrow: Any) -> Any:
    types = {
        int: arrow.int64(),
        str: arrow.string(),
        bytes: arrow.binary(),
        UUID: arrow.string(),
        datetime: arrow.timestamp("us", tz="UTC"),
        list[int]: arrow.list_(arrow.int64()),
    }
    columns: dict[str, Any] = {_KIND: arrow.string()}
    kinds: tuple[type[Record], ...] = get_args(AnyRecord)
    for kind in kinds:
        for name, hint in get_type_hints(kind).items():
            if name not in kind.__struct_fields__:
                continue
            (wanted,) = (
                {each for each in get_args(hint) or (hint,) if each is not type(None)} if hint != list[int] else {hint}
            )
            assert columns.setdefault(name, types[wanted]) == types[wanted], f"{name} is one type in all records"
    return arrow.schema(list(columns.items()))


def _import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part, which have no types. Raises `ParquetMissing`, `ParquetBroken` and `MemoryError`."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ParquetMissing from None
    except (ImportError, SystemError) as error:
        raise ParquetBroken(str(error).partition("\n")[0]) from None
