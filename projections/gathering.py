"""Streams put together from a log that is read as it lies on the disk: hardly in any order.

Sorting events by stream costs a database more than everything else that a rebuild asks of it. Here they are held by stream, as
the bytes that they came in, until the stream is whole. What is too much to hold waits in a temporary file (`spilling`).
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final
from uuid import UUID

import msgspec

from events import pages
from events.errors import LogCorrupted
from events.ids import lane_of_bytes
from projections.definition import StreamFold
from projections.spilling import Event, Part, Spill
from projections.stored import events_of
from projections.tables import Row

#: How much is held in memory. What an event costs there beside its own bytes is counted too.
HELD_BYTES_MAX: Final = 128 * 2**20
_EVENT_BYTES: Final = 64

#: How many events of a stream are folded at once where there is more: a stream of any length keeps to it. Of large ones as many as a
#: page holds (`events/pages.py`).
CHUNK: Final = 256

#: A length that no stream ever has.
_UNKNOWN: Final = sys.maxsize

Begin = Callable[[UUID], StreamFold]
"""The fold of a stream, before its first event."""

#: How far lanes are to be folded.
Targets = Mapping[int, int]


class StreamRefused(Exception):
    """The fold of the stream cannot take an event of it: `error`."""

    def __init__(self, stream_id: UUID, error: Exception) -> None:
        super().__init__(stream_id)
        self.stream_id = stream_id
        self.error = error


def rows_of(parts: Iterable[Part], begin: Begin, *, targets: Targets, lengths: Mapping[bytes, int]) -> Iterator[Row]:
    """The rows of all streams whose events are in `parts`: all of the lanes in `targets` up to there, in whatever order.

    `lengths`: how many events streams have, by id; one of them is folded as soon as it has so many, any other at the end.
    Raises `LogCorrupted` where an event is missing, and `StreamRefused`.
    """
    streams = Streams(begin, targets, lengths)
    waiting = iter(parts)
    for part in waiting:
        yield from streams.add(part)
        if streams.held_bytes > HELD_BYTES_MAX:
            yield from _rows_of_more(streams, waiting, begin, targets)
    yield from streams.rest()
    for lane, target in targets.items():
        if (count := streams.counts[lane]) != target:
            raise LogCorrupted(lane, target, f"{count} events where {target} must be")


def _rows_of_more(streams: Streams, parts: Iterator[Part], begin: Begin, targets: Targets) -> Iterator[Row]:
    """The rows of what `streams` holds with all of `parts`: put away first, then taken up again, one share of it at a time."""
    # The file has no name: whoever is killed leaves nothing behind.
    with tempfile.TemporaryFile(prefix="hydracore-fold-") as file:
        spill = Spill(file)
        spill.add(streams.let_go())
        for part in parts:
            spill.add(part.events())
        for share in spill.shares():
            some = Streams(begin, targets, {}, chunk=CHUNK)
            for part in share:
                yield from some.add(part)
            yield from some.rest()
            streams.counts += some.counts


class _Stream:
    """Has all before the version that is `due`: `payloads` are those that were not folded yet. `early` are later ones."""

    __slots__ = ("due", "early", "fold", "length", "payloads")

    def __init__(self, length: int) -> None:
        self.length = length
        self.due = 1
        self.payloads: list[bytes] = []
        self.early: dict[int, bytes] = {}
        self.fold: StreamFold | None = None


class Streams:
    """Streams on their way to be whole. `chunk`: how many events of one are held before they are folded."""

    def __init__(
        self, begin: Begin, targets: Targets, lengths: Mapping[bytes, int], *, chunk: int = sys.maxsize
    ) -> None:
        self._begin = begin
        self._targets = targets
        self._lengths = lengths
        self._chunk = chunk
        self._held: dict[bytes, _Stream] = {}
        self.held_bytes = 0
        #: How many events the streams of each lane had whose rows were given.
        self.counts = Counter[int]()

    def add(self, part: Part) -> Iterator[Row]:
        """Take the events of `part`; the rows of the streams that are whole with them."""
        held, lengths, chunk = self._held, self._lengths, self._chunk
        self.held_bytes += len(part.payloads) + part.size * _EVENT_BYTES
        for (key,), (version,), payload in part.events():
            stream = held.get(key)
            if stream is None:
                stream = held[key] = _Stream(lengths.get(key, _UNKNOWN))
            # Nearly all come in order.
            if version == stream.due and not stream.early:
                stream.payloads.append(payload)
                stream.due = version + 1
            else:
                stream.early[version] = payload
                _settle(stream)
            if stream.due > stream.length:
                yield from self._rows(key, held.pop(key))
            elif len(stream.payloads) >= chunk:
                self._feed(key, stream)
        if chunk < sys.maxsize and self.held_bytes > pages.PAGE_BYTES:
            for key, stream in held.items():
                if stream.payloads:
                    self._feed(key, stream)

    def rest(self) -> Iterator[Row]:
        """The rows of all streams that are held."""
        while self._held:
            yield from self._rows(*self._held.popitem())

    def let_go(self) -> Iterator[Event]:
        """All that is held, which then is held no longer. For streams of which nothing was folded."""
        while self._held:
            key, stream = self._held.popitem()
            assert stream.fold is None, "what was folded is known no more"
            for version, payload in (*enumerate(stream.payloads, 1), *stream.early.items()):
                yield (key,), (version,), payload

    def _rows(self, key: bytes, stream: _Stream) -> Iterable[Row]:
        lane = lane_of_bytes(key)
        if stream.early:
            what = f"{len(stream.early)} events of {UUID(bytes=key)} do not follow its version {stream.due - 1}"
            raise LogCorrupted(lane, self._targets[lane], what)
        self.counts[lane] += stream.due - 1
        return self._feed(key, stream).rows()

    def _feed(self, key: bytes, stream: _Stream) -> StreamFold:
        """Fold what is held of the stream."""
        fold = stream.fold
        if fold is None:
            # Four times as fast as the class itself.
            fold = stream.fold = self._begin(msgspec.convert(key, UUID))
        for payloads in parts_of(stream.payloads):
            events = b"[" + b",".join(payloads) + b"]"
            try:
                fold.feed(events_of(events))
            except Exception as error:
                raise StreamRefused(UUID(bytes=key), error) from error
            self.held_bytes -= len(events) + len(payloads) * _EVENT_BYTES
        stream.payloads.clear()
        return fold


def parts_of(payloads: list[bytes]) -> Iterator[list[bytes]]:
    """Together, unless they are more than a page holds."""
    if sum(map(len, payloads)) <= pages.PAGE_BYTES:
        yield payloads
        return
    part, size = list[bytes](), 0
    for payload in payloads:
        part.append(payload)
        size += len(payload)
        if size >= pages.PAGE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _settle(stream: _Stream) -> None:
    """Put what came early where it belongs, as far as there is no gap in front of it."""
    while (payload := stream.early.pop(stream.due, None)) is not None:
        stream.payloads.append(payload)
        stream.due += 1
