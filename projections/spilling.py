"""A temporary file for events that exceed memory in a rebuild, in partitions that do not; and `Part`, their format."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple, Self

#: The separator of payloads. No payload contains it: PostgreSQL's json allows no such character.
_BETWEEN: Final = b"\0"

#: Ids and versions as PostgreSQL sends them.
_ID: Final = struct.Struct("16s")
_VERSION: Final = struct.Struct(">i")

#: The number of partitions, and the byte of a stream's id that is the number of its partition. The last byte gives the
#: lane.
_PARTITIONS: Final = 256
_PARTITION_AT: Final = 14

#: How many bytes of payloads are collected before they are written.
WAITING_BYTES_MAX: Final = 16 * 2**20

Event = tuple[tuple[bytes], tuple[int], bytes]
"""A stream's id, the event's version and its payload. The first two are tuples, as `struct` unpacks them."""


class Part(NamedTuple):
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
            _BETWEEN.join(payloads),
        )

    @property
    def size(self) -> int:
        """How many events there are."""
        return len(self.versions) // _VERSION.size

    def events(self) -> Iterator[Event]:
        ids: Iterator[tuple[bytes]] = _ID.iter_unpack(self.ids)
        versions: Iterator[tuple[int]] = _VERSION.iter_unpack(self.versions)
        return zip(ids, versions, self.payloads.split(_BETWEEN), strict=True)


def lengths_of(ids: bytes, versions: bytes) -> dict[bytes, int]:
    """The versions by stream id, from concatenated ids and concatenated versions."""
    return {
        key: version for (key,), (version,) in zip(_ID.iter_unpack(ids), _VERSION.iter_unpack(versions), strict=True)
    }


class Spill:
    """Events by partition, in `file`, which must be empty. First all events are added, then each partition is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[list[Event]] = [[] for _ in range(_PARTITIONS)]
        self._waiting_bytes = 0
        #: For each partition, where its pieces begin in the file, and the lengths of their three fields.
        self._pieces: list[list[tuple[int, list[int]]]] = [[] for _ in range(_PARTITIONS)]

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            (key,), _, payload = event
            self._waiting[key[_PARTITION_AT]].append(event)
            self._waiting_bytes += len(payload)
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._write()

    def partitions(self) -> Iterator[Iterator[Part]]:
        """Each partition. A partition holds all events of its streams."""
        self._write()
        return map(self._read, self._pieces)

    def _write(self) -> None:
        for waiting, pieces in zip(self._waiting, self._pieces, strict=True):
            if waiting:
                part = Part.of(waiting)
                pieces.append((self._file.tell(), [len(field) for field in part]))
                self._file.writelines(part)
                waiting.clear()
        self._waiting_bytes = 0

    def _read(self, pieces: list[tuple[int, list[int]]]) -> Iterator[Part]:
        for at, lengths in pieces:
            self._file.seek(at)
            yield Part(*(self._file.read(length) for length in lengths))
