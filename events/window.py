"""The fast path of verification: recomputes all digests and links of a window of some hundred events at once.

The database sends a window column by column. The bytes that `events.digest` hashes are put together here by `zip`, `map` and `join`,
that is in C: a line of Python per field of each event would take longer than the hashing. They must equal those of `events.digest`
to the bit, or no log would verify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from operator import mul
from struct import Struct, error, pack, unpack
from typing import NamedTuple

from events.diagnosis import POSTGRES_EPOCH_US
from events.digest import GENESIS
from events.seal import Head

#: Separates texts. PostgreSQL's text and JSON cannot contain a zero byte.
_SEPARATOR = b"\0"
#: Separate ids and digests: the length prefixes that precede them when they are hashed. With the number of bytes alone, digests of
#: wrong lengths would go unnoticed.
_ID, _DIGEST = (16).to_bytes(8), (32).to_bytes(8)
_DIGEST_BYTES = len(_DIGEST) + len(GENESIS)
_ABSENT = (1).to_bytes(8) + b"\0"

#: The most cached `Struct`s, one for each layout and number of pieces.
_SPLITTERS_MAX = 256


class Window(NamedTuple):
    """The columns of a window, in the order of `windows` in verify.sql: first those of its commands; from `seqs` on, of its events."""

    first_seqs: list[int]
    event_counts: list[int]
    command_ids: bytes
    stream_ids: bytes
    tenants: bytes
    names: bytes
    actors: bytes
    correlation_ids: bytes
    causation_ids: list[bytes | None]
    request_hashes: list[bytes | None]
    results: list[bytes | None]
    links: list[bytes]
    digests: bytes
    recorded: bytes
    has_no_nulls: bool
    seqs: list[int]
    event_stream_ids: bytes
    versions: list[int]
    types: bytes
    schema_versions: list[int]
    payloads: list[bytes]
    event_digests: bytes
    event_command_ids: bytes
    event_tenants: bytes
    event_recorded: bytes

    def stream_versions(self) -> Iterator[tuple[bytes, int]]:
        """Of each event, the bytes of its stream's id, and its version."""
        streams = _pieces("16s8x", self.event_stream_ids + _ID) if self.event_stream_ids else ()
        return zip(streams, self.versions, strict=False)

    def type_names(self) -> list[str]:
        """The stored name of each event's type."""
        return self.types.decode().split(_SEPARATOR.decode())

    def commands(self) -> Iterator[tuple[bytes, str, str, str, int]]:
        """Of each command: the bytes of its stream's id, its tenant, its name, its actor, and when it was recorded, in microseconds
        since PostgreSQL's epoch.
        """
        texts = [text.decode().split(_SEPARATOR.decode()) for text in (self.tenants, self.names, self.actors)]
        recorded_us = unpack(f">{len(self.first_seqs)}q", self.recorded)
        return zip(_pieces("16s8x", self.stream_ids + _ID), *texts, recorded_us, strict=True)


#: PostgreSQL's types of the columns of `Window`. A binary COPY does not send them.
TYPES = (
    *("int8[]", "int4[]", *("bytea",) * 6, *("bytea[]",) * 4, *("bytea",) * 2, "bool"),
    *("int8[]", "bytea", "int4[]", "bytea", "int2[]", "json[]", *("bytea",) * 4),
)
_EMPTY = tuple([] if kind.endswith("[]") else b"" for kind in TYPES)


def window_of(columns: Iterable[object]) -> Window:
    """The window of a row. Columns are null where there are no events."""
    return Window(*(empty if column is None else column for column, empty in zip(columns, _EMPTY, strict=True)))  # pyright: ignore[reportArgumentType] - as `TYPES` says


def is_valid_window(window: Window, *, after: Head) -> bool:
    """Whether the window follows `after`, and all its numbers, digests and links are right."""
    count = len(window.seqs)
    if not window.has_no_nulls or window.seqs != list(range(after.seq + 1, after.seq + 1 + count)):
        return False
    # The log never has a command without events.
    if min(window.event_counts) < 1:
        return False
    firsts = list(accumulate(window.event_counts, initial=after.seq + 1))
    if firsts.pop() != after.seq + 1 + count or firsts != window.first_seqs:
        return False
    try:
        return (
            _DIGEST.join(_hashes(_event_frames(window))) == window.event_digests
            and _are_commands_valid(window)
            and _hashes(_link_frames(window, after)) == window.links
        )
    except (error, OverflowError, ValueError, TypeError):
        return False  # Columns of different lengths, or nulls, numbers and times that the log never writes.


def _hashes(frames: Iterable[bytes]) -> list[bytes]:
    return [hashed.digest() for hashed in map(sha256, frames)]


def _event_frames(window: Window) -> Iterator[bytes]:
    return map(
        b"".join,
        zip(
            _pieces("24s", _ID + window.event_stream_ids),
            map(_version, window.versions),
            map(_type, zip(window.types.split(_SEPARATOR), window.schema_versions, strict=True)),
            map(_length, map(len, window.payloads)),
            window.payloads,
            strict=True,
        ),
    )


def _are_commands_valid(window: Window) -> bool:
    """Whether the commands' digests are right, and their events have the same command, stream, tenant and time as they."""
    command_ids = _pieces("24s", _ID + window.command_ids)
    stream_ids = _pieces("24s", _ID + window.stream_ids)
    tenants, names, actors = [texts.split(_SEPARATOR) for texts in (window.tenants, window.names, window.actors)]
    frames = zip(
        command_ids,
        stream_ids,
        map(_length, map(len, tenants)),
        tenants,
        map(_length, map(len, names)),
        names,
        map(_length, map(len, actors)),
        actors,
        _pieces("24s", _ID + window.correlation_ids),
        _optional(window.causation_ids),
        _optional(window.request_hashes),
        _optional(window.results),
        _digests_of_events(window),
        strict=True,
    )
    counts = window.event_counts
    return (
        _DIGEST.join(_hashes(map(b"".join, frames))) == window.digests
        and b"".join(map(mul, command_ids, counts)) == _ID + window.event_command_ids
        and b"".join(map(mul, stream_ids, counts)) == _ID + window.event_stream_ids
        and b"".join(map(mul, _pieces("8s", window.recorded), counts)) == window.event_recorded
        and b"".join([(tenant + _SEPARATOR) * count for tenant, count in zip(tenants, counts, strict=True)])
        == window.event_tenants + _SEPARATOR
    )


def _optional(parts: list[bytes | None]) -> list[bytes]:
    if parts.count(None) == len(parts):
        return [_ABSENT] * len(parts)
    return [_ABSENT if part is None else _length(len(part) + 1) + b"\1" + part for part in parts]


def _digests_of_events(window: Window) -> Iterator[bytes]:
    """For each command, the digests of its events, each behind its length."""
    digests = _DIGEST + window.event_digests
    ends = list(accumulate([_DIGEST_BYTES * count for count in window.event_counts], initial=0))
    return map(digests.__getitem__, map(slice, ends[:-1], ends[1:]))


def _link_frames(window: Window, after: Head) -> Iterator[bytes]:
    """What each link is hashed from. It begins with the stored link before it, so an edit is found at its place and nowhere else."""
    count = len(window.first_seqs)
    recorded_us = [at + POSTGRES_EPOCH_US for at in unpack(f">{count}q", window.recorded)]
    return map(
        b"".join,
        zip(
            (after.link, *window.links[:-1]),
            _pieces("32s8x", window.digests + _DIGEST),
            _pieces("8s", pack(f">{count}Q", *window.first_seqs)),
            _pieces("8s", pack(f">{count}Q", *recorded_us)),
            strict=True,
        ),
    )


@lru_cache(_SPLITTERS_MAX)
def _splitter(layout: str, count: int) -> Callable[[bytes], tuple[bytes, ...]]:
    return Struct(layout * count).unpack


def _pieces(layout: str, parts: bytes) -> tuple[bytes, ...]:
    """`parts` split into pieces of this layout. Raises `struct.error` unless it is a whole number of pieces."""
    return _splitter(layout, len(parts) // _size(layout))(parts)


@lru_cache
def _size(layout: str) -> int:
    return Struct(layout).size


class _Lengths(dict[int, bytes]):
    """Lengths as the eight bytes of a length prefix. A log has few different ones."""

    def __missing__(self, size: int) -> bytes:
        self[size] = found = size.to_bytes(8)
        return found


class _Versions(dict[int, bytes]):
    """Versions as they are hashed, with their length prefix."""

    def __missing__(self, version: int) -> bytes:
        self[version] = found = _length(8) + version.to_bytes(8)
        return found


class _Types(dict[tuple[bytes, int], bytes]):
    """Types and schema versions as they are hashed, each with its length prefix."""

    def __missing__(self, kind: tuple[bytes, int]) -> bytes:
        name, schema_version = kind
        self[kind] = found = _length(len(name)) + name + _length(2) + schema_version.to_bytes(2)
        return found


_length = _Lengths().__getitem__
_version = _Versions().__getitem__
_type = _Types().__getitem__
