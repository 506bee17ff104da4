"""What a rebuild cannot hold waits in a file, in shares that it can; and the form that events have on their way."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple, Self

#: What stands between two payloads, and in none of them: PostgreSQL's json has no such character.
_BETWEEN: Final = b"\0"

#: Ids and versions as PostgreSQL sends them.
_ID: Final = struct.Struct("16s")
_VERSION: Final = struct.Struct(">i")

#: How many shares there are, and which byte of its id says whose a stream is. The last byte tells the lane.
_SHARES: Final = 256
_SHARE_AT: Final = 14

#: How much is put together before it is written.
WAITING_BYTES_MAX: Final = 16 * 2**20

Event = tuple[tuple[bytes], tuple[int], bytes]
"""The id of its stream, its version there, and its payload; the first two as `struct` unpacks them."""


class Part(NamedTuple):
    """Some events, in any order: the ids of their streams, their versions and their payloads, each one after the other."""

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
    """The versions by id."""
    return {
        key: version for (key,), (version,) in zip(_ID.iter_unpack(ids), _VERSION.iter_unpack(versions), strict=True)
    }


class Spill:
    """Events by share, in an empty `file`. First all are added, then each share is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[list[Event]] = [[] for _ in range(_SHARES)]
        self._waiting_bytes = 0
        #: Where the pieces of each share begin, and how long their fields are.
        self._pieces: list[list[tuple[int, list[int]]]] = [[] for _ in range(_SHARES)]

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            (key,), _, payload = event
            self._waiting[key[_SHARE_AT]].append(event)
            self._waiting_bytes += len(payload)
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._write()

    def shares(self) -> Iterator[Iterator[Part]]:
        """Each share, which has all that was added of its streams."""
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
