"""Assemble streams from a log that is read in the order of the table, in which a stream's events are scattered.

Sorting events by stream would cost the database more than all else that a rebuild asks of it. Here they are collected
by stream, as the bytes that arrived, until the stream is complete. What exceeds memory goes to a temporary file
(`spilling`).
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
from projections.spilling import Event, EventBlock, Spill
from projections.sql_fragments import events_of
from projections.tables import Row

#: The most bytes that are held in memory, `_EVENT_BYTES` of overhead per event included.
HELD_BYTES_MAX: Final = 128 * 2**20
_EVENT_BYTES: Final = 64

#: The most events of a stream that are folded at once where a stream is folded in chunks, which bounds memory. Of large
#: events, as many as fit a page (`events/pages.py`).
CHUNK: Final = 256

#: Stands for a length that was not read in advance: more than any stream has.
_UNKNOWN: Final = sys.maxsize

Begin = Callable[[UUID], StreamFold]
"""Returns the fold of a stream, before its first event."""

#: The number up to which each lane is folded.
Targets = Mapping[int, int]


class StreamRefused(Exception):
    """The fold of the stream refused an event, with `error`."""

    def __init__(self, stream_id: UUID, error: Exception) -> None:
        super().__init__(stream_id)
        self.stream_id = stream_id
        self.error = error


def rows_of(
    blocks: Iterable[EventBlock], begin: Begin, *, targets: Targets, lengths: Mapping[bytes, int]
) -> Iterator[Row]:
    """The rows of all streams in `blocks`, which hold all events of the lanes in `targets` up to there, in any order.

    `lengths`: how many events each stream has, by id. A stream is folded as soon as it has that many, a stream without
    a length at the end. Raises `LogCorrupted` where an event is missing, and `StreamRefused`.
    """
    streams = StreamAssembler(begin, targets, lengths)
    waiting = iter(blocks)
    for block in waiting:
        yield from streams.add(block)
        if streams.held_bytes > HELD_BYTES_MAX:
            yield from _rows_via_spill(streams, waiting, begin, targets)
    yield from streams.remaining_rows()
    for lane, target in targets.items():
        if (count := streams.counts[lane]) != target:
            raise LogCorrupted(lane, target, f"{count} events where {target} must be")


def _rows_via_spill(
    streams: StreamAssembler, blocks: Iterator[EventBlock], begin: Begin, targets: Targets
) -> Iterator[Row]:
    """The rows of what `streams` holds and of `blocks`: all is written to a file and read by partition."""
    # The file has no name, so that a process that is killed leaves nothing behind.
    with tempfile.TemporaryFile(prefix="hydracore-fold-") as file:
        spill = Spill(file)
        spill.add(streams.drain())
        for block in blocks:
            spill.add(block.events())
        for partition in spill.partitions():
            assembler = StreamAssembler(begin, targets, {}, chunk=CHUNK)
            for block in partition:
                yield from assembler.add(block)
            yield from assembler.remaining_rows()
            streams.counts += assembler.counts


class _Stream:
    """A stream that is being assembled.

    `due`: the version that comes next; all before it are here. `payloads`: the events before `due` that were not folded
    yet. `early`: later ones, by version.
    """

    __slots__ = ("due", "early", "fold", "length", "payloads")

    def __init__(self, length: int) -> None:
        self.length = length
        self.due = 1
        self.payloads: list[bytes] = []
        self.early: dict[int, bytes] = {}
        self.fold: StreamFold | None = None


class StreamAssembler:
    """Assembles streams from their events. `chunk`: how many events of a stream are held before they are folded."""

    def __init__(
        self, begin: Begin, targets: Targets, lengths: Mapping[bytes, int], *, chunk: int = sys.maxsize
    ) -> None:
        self._begin = begin
        self._targets = targets
        self._lengths = lengths
        self._chunk = chunk
        self._held: dict[bytes, _Stream] = {}
        self.held_bytes = 0
        #: By lane, how many events the streams have whose rows were returned.
        self.counts = Counter[int]()

    def add(self, block: EventBlock) -> Iterator[Row]:
        """Add the events of `block`. Yields the rows of the streams that are complete with them."""
        held, lengths, chunk = self._held, self._lengths, self._chunk
        self.held_bytes += len(block.payloads) + block.size * _EVENT_BYTES
        for (key,), (version,), payload in block.events():
            stream = held.get(key)
            if stream is None:
                stream = held[key] = _Stream(lengths.get(key, _UNKNOWN))
            # The most frequent case.
            if version == stream.due and not stream.early:
                stream.payloads.append(payload)
                stream.due = version + 1
            else:
                stream.early[version] = payload
                _take_consecutive(stream)
            if stream.due > stream.length:
                yield from self._rows(key, held.pop(key))
            elif len(stream.payloads) >= chunk:
                self._feed(key, stream)
        if chunk < sys.maxsize and self.held_bytes > pages.PAGE_BYTES:
            for key, stream in held.items():
                if stream.payloads:
                    self._feed(key, stream)

    def remaining_rows(self) -> Iterator[Row]:
        """The rows of all streams that are still held."""
        while self._held:
            yield from self._rows(*self._held.popitem())

    def drain(self) -> Iterator[Event]:
        """Yield all held events and drop them. No stream may have a fold."""
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
        """Fold the events of the stream that are held and due."""
        fold = stream.fold
        if fold is None:
            # Four times as fast as `UUID(bytes=key)`.
            fold = stream.fold = self._begin(msgspec.convert(key, UUID))
        for payloads in page_sized_lists(stream.payloads):
            events = b"[" + b",".join(payloads) + b"]"
            try:
                fold.feed(events_of(events))
            except Exception as error:
                raise StreamRefused(UUID(bytes=key), error) from error
            self.held_bytes -= len(events) + len(payloads) * _EVENT_BYTES
        stream.payloads.clear()
        return fold


def page_sized_lists(payloads: list[bytes]) -> Iterator[list[bytes]]:
    """`payloads` in one list, or in several of about a page's bytes where they exceed a page."""
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


def _take_consecutive(stream: _Stream) -> None:
    """Move early events to `payloads`, up to the first gap."""
    while (payload := stream.early.pop(stream.due, None)) is not None:
        stream.payloads.append(payload)
        stream.due += 1
