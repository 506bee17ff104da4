"""A temporary file for events that exceed memory in a rebuild, in partitions that do not; `EventBlock` is their format."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple, Self

#: The separator of payloads. No payload contains it: PostgreSQL's json allows no such character.
_SEPARATOR: Final = b"\0"

#: Ids and versions as PostgreSQL sends them.
_ID: Final = struct.Struct("16s")
_VERSION: Final = struct.Struct(">i")

#: The number of partitions, and the byte of a stream's id that is the number of its partition. The last byte gives the
#: lane.
_PARTITIONS: Final = 256
_PARTITION_AT: Final = 14

#: How many bytes of payloads are collected before they are written.
BUFFERED_BYTES_MAX: Final = 16 * 2**20

Event = tuple[tuple[bytes], tuple[int], bytes]
"""A stream's id, the event's version and its payload. The first two are tuples, as `struct` unpacks them."""


class EventBlock(NamedTuple):
    """Some events, in any order: their streams' ids, their versions and their payloads, each concatenated."""

    ids: bytes
    versions: bytes
    payloads: bytes

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        ids, versions, payloads = zip(*events, strict=True)
        return cls(
            b"".join(key for (key,) in ids),
            b"".join(_VERSION.pack(*version) for version in versions),
            _SEPARATOR.join(payloads),
        )

    @property
    def size(self) -> int:
        """How many events there are."""
        return len(self.versions) // _VERSION.size

    def events(self) -> Iterator[Event]:
        ids: Iterator[tuple[bytes]] = _ID.iter_unpack(self.ids)
        versions: Iterator[tuple[int]] = _VERSION.iter_unpack(self.versions)
        return zip(ids, versions, self.payloads.split(_SEPARATOR), strict=True)


def lengths_of(ids: bytes, versions: bytes) -> dict[bytes, int]:
    """The versions by stream id, from concatenated ids and concatenated versions."""
    return {
        key: version for (key,), (version,) in zip(_ID.iter_unpack(ids), _VERSION.iter_unpack(versions), strict=True)
    }


class Spill:
    """Events by partition, in `file`, which must be empty. First all events are added, then each partition is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffered: list[list[Event]] = [[] for _ in range(_PARTITIONS)]
        self._buffered_bytes = 0
        #: For each partition, where its pieces begin in the file, and the lengths of their three fields.
        self._pieces: list[list[tuple[int, list[int]]]] = [[] for _ in range(_PARTITIONS)]

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            (key,), _, payload = event
            self._buffered[key[_PARTITION_AT]].append(event)
            self._buffered_bytes += len(payload)
            if self._buffered_bytes > BUFFERED_BYTES_MAX:
                self._write()

    def partitions(self) -> Iterator[Iterator[EventBlock]]:
        """Each partition. A partition holds all events of its streams."""
        self._write()
        return map(self._read, self._pieces)

    def _write(self) -> None:
        for waiting, pieces in zip(self._buffered, self._pieces, strict=True):
            if waiting:
                block = EventBlock.of(waiting)
                pieces.append((self._file.tell(), [len(field) for field in block]))
                self._file.writelines(block)
                waiting.clear()
        self._buffered_bytes = 0

    def _read(self, pieces: list[tuple[int, list[int]]]) -> Iterator[EventBlock]:
        for at, lengths in pieces:
            self._file.seek(at)
            yield EventBlock(*(self._file.read(length) for length in lengths))
