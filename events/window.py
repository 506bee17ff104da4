"""A stretch of a lane in one piece, and whether all of it is as it must be.

The database sends what the digests are taken over, a column at a time, and the bytes that `events.digest` hashes are put together
here: in C, by `zip`, `map` and `join`, because a line of Python for each field of each event would take longer than the hashing.
If the bytes differed from those of `events.digest` by a bit, nothing would verify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from operator import mul
from struct import Struct, error, pack, unpack
from typing import NamedTuple

from events.digest import GENESIS
from events.examine import POSTGRES_EPOCH_US
from events.seal import Head

#: What stands between texts, because it can be in none: PostgreSQL has no text, and no JSON, with a zero byte.
_BETWEEN = b"\0"
#: What stands between ids and between digests: the lengths that precede them where they are hashed. The number of bytes alone
#: would not tell digests of other lengths apart.
_ID, _DIGEST = (16).to_bytes(8), (32).to_bytes(8)
_DIGEST_BYTES = len(_DIGEST) + len(GENESIS)
_ABSENT = (1).to_bytes(8) + b"\0"

#: How many ways of taking bytes apart are kept: one for each layout and number of pieces.
_SPLITTERS_MAX = 256


class Window(NamedTuple):
    """The commands of a window, and behind `seqs` their events; as `windows` in verify.sql sends them, to the letter."""

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
    are_whole: bool
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
        """The stream of each event, by the bytes of its id, and the version that it says."""
        streams = _pieces("16s8x", self.event_stream_ids + _ID) if self.event_stream_ids else ()
        return zip(streams, self.versions, strict=False)

    def type_names(self) -> list[str]:
        """The stored name of each event's type."""
        return self.types.decode().split(_BETWEEN.decode())

    def orders(self) -> Iterator[tuple[bytes, str, str, str, int]]:
        """Of each command: the stream by the bytes of its id, the tenant, what it is called, who gave it, and when it was recorded, in
        microseconds since PostgreSQL's epoch.
        """
        texts = [text.decode().split(_BETWEEN.decode()) for text in (self.tenants, self.names, self.actors)]
        recorded_us = unpack(f">{len(self.first_seqs)}q", self.recorded)
        return zip(_pieces("16s8x", self.stream_ids + _ID), *texts, recorded_us, strict=True)


#: The types of the columns, as COPY must be told them, behind the lane's.
TYPES = (
    *("int8[]", "int4[]", *("bytea",) * 6, *("bytea[]",) * 4, *("bytea",) * 2, "bool"),
    *("int8[]", "bytea", "int4[]", "bytea", "int2[]", "json[]", *("bytea",) * 4),
)
_EMPTY = tuple([] if kind.endswith("[]") else b"" for kind in TYPES)


def window_of(columns: Iterable[object]) -> Window:
    """The window of a row. Where there is no event, its columns are null."""
    return Window(*(empty if column is None else column for column, empty in zip(columns, _EMPTY, strict=True)))  # pyright: ignore[reportArgumentType] - as `TYPES` says


def fits(window: Window, *, after: Head) -> bool:
    """Whether a window is what must follow `after`, to the last bit."""
    count = len(window.seqs)
    if not window.are_whole or window.seqs != list(range(after.seq + 1, after.seq + 1 + count)):
        return False
    # A command without events would be an order that nobody can be shown the effect of.
    if min(window.event_counts) < 1:
        return False
    firsts = list(accumulate(window.event_counts, initial=after.seq + 1))
    if firsts.pop() != after.seq + 1 + count or firsts != window.first_seqs:
        return False
    try:
        return (
            _DIGEST.join(_hashes(_event_frames(window))) == window.event_digests
            and _commands_fit(window)
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
            map(_type, zip(window.types.split(_BETWEEN), window.schema_versions, strict=True)),
            map(_length, map(len, window.payloads)),
            window.payloads,
            strict=True,
        ),
    )


def _commands_fit(window: Window) -> bool:
    """Whether commands have their digests, and events say of command, stream, tenant and time what their commands say."""
    command_ids = _pieces("24s", _ID + window.command_ids)
    stream_ids = _pieces("24s", _ID + window.stream_ids)
    tenants, names, actors = [texts.split(_BETWEEN) for texts in (window.tenants, window.names, window.actors)]
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
        and b"".join([(tenant + _BETWEEN) * count for tenant, count in zip(tenants, counts, strict=True)])
        == window.event_tenants + _BETWEEN
    )


def _optional(parts: list[bytes | None]) -> list[bytes]:
    if parts.count(None) == len(parts):
        return [_ABSENT] * len(parts)
    return [_ABSENT if part is None else _length(len(part) + 1) + b"\1" + part for part in parts]


def _digests_of_events(window: Window) -> Iterator[bytes]:
    """The digests of each command's events, each behind its length."""
    digests = _DIGEST + window.event_digests
    ends = list(accumulate([_DIGEST_BYTES * count for count in window.event_counts], initial=0))
    return map(digests.__getitem__, map(slice, ends[:-1], ends[1:]))


def _link_frames(window: Window, after: Head) -> Iterator[bytes]:
    """Each from the link that is stored before it, so that an edit shows where it is and nowhere else."""
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
    """`parts` taken apart. Raises `struct.error` where it is no whole number of pieces."""
    return _splitter(layout, len(parts) // _size(layout))(parts)


@lru_cache
def _size(layout: str) -> int:
    return Struct(layout).size


class _Lengths(dict[int, bytes]):
    """A number as the eight bytes that precede so much; there are not many different ones."""

    def __missing__(self, size: int) -> bytes:
        self[size] = found = size.to_bytes(8)
        return found


class _Versions(dict[int, bytes]):
    """A version as it is hashed, behind its length."""

    def __missing__(self, version: int) -> bytes:
        self[version] = found = _length(8) + version.to_bytes(8)
        return found


class _Types(dict[tuple[bytes, int], bytes]):
    """Type and schema version as they are hashed, each behind its length."""

    def __missing__(self, kind: tuple[bytes, int]) -> bytes:
        name, schema_version = kind
        self[kind] = found = _length(len(name)) + name + _length(2) + schema_version.to_bytes(2)
        return found


_length = _Lengths().__getitem__
_version = _Versions().__getitem__
_type = _Types().__getitem__
