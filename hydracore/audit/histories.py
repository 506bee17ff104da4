"""Histories of streams, put together out of the windows of their lanes while these are verified."""

from __future__ import annotations

from collections import defaultdict
from operator import eq

import msgspec

from events.ids import lane_of_bytes
from events.upcast import CURRENT, Outdated
from events.window import Window

#: How many bytes the histories may have that are held, and what each event of them counts for beside its own.
HELD_BYTES_MAX = 128 * 2**20
_EVENT_BYTES = 64

#: Which byte of its id says whether a stream is among those that are held, below which number. The last byte tells the lane.
_SHARE_AT = 14
_ALL = 256

_encode = msgspec.json.Encoder().encode


class Histories:
    """`lengths`: how many events streams have, by the bytes of their ids. A stream is whole as soon as it has so many, and is forgotten
    then; one that is not among them is not held.

    Where there is more than may be held, only every other stream is from then on, then every fourth, and so on.
    """

    def __init__(self, lengths: dict[bytes, int], *, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._lengths = lengths
        self._bytes_max = bytes_max
        #: By lane: what another lane has of a stream is no part of it.
        self._held = defaultdict[int, dict[bytes, list[bytes]]](dict)
        self._whole: dict[bytes, list[bytes]] = {}
        self._below = _ALL
        #: How many bytes were held at the last count, and have been read since.
        self._bytes = 0
        #: How many events those have that are whole, and how many bytes.
        self.events_whole = self.bytes_whole = 0

    def take(self, lane: int, window: Window) -> None:
        """Take the events of a window that fits (`events.window`); those of each lane in order."""
        held, lengths, below = self._held[lane], self._lengths, self._below
        payloads = _as_decoded(window)
        for (stream, version), payload in zip(window.stream_versions(), payloads, strict=True):
            if version == 1 and stream[_SHARE_AT] < below and stream in lengths and lane_of_bytes(stream) == lane:
                history = held[stream] = list[bytes]()
            else:
                history = held.get(stream)
                if history is None:
                    continue
            history.append(payload)
            if version != len(history):
                # Whatever lacks an event, or has one where it does not belong, is not known here.
                del held[stream]
            elif version == lengths[stream]:
                del held[stream], lengths[stream]
                self._whole[stream] = history
                self.events_whole += version
                self.bytes_whole += sum(map(len, history))
        self._bytes += _weight(payloads)
        if self._bytes > self._bytes_max:
            self._make_room()

    def let_go(self) -> dict[bytes, list[bytes]]:
        """The events of the streams that are whole, as bulk decoding takes them (`projections.stored.events_of`)."""
        whole, self._whole = self._whole, {}
        self.events_whole = self.bytes_whole = 0
        return whole

    def _make_room(self) -> None:
        self._bytes = sum(_weight(history) for held in self._held.values() for history in held.values())
        while self._below and self._bytes > self._bytes_max // 2:
            self._below //= 2
            for held in self._held.values():
                for stream in [stream for stream in held if stream[_SHARE_AT] >= self._below]:
                    self._bytes -= _weight(held.pop(stream))


def _weight(payloads: list[bytes]) -> int:
    return sum(map(len, payloads)) + len(payloads) * _EVENT_BYTES


def _as_decoded(window: Window) -> list[bytes]:
    """The payloads, of those that are not what today's code writes with what says so (`events.upcast.Outdated`)."""
    names, versions = window.type_names(), window.schema_versions
    if all(map(eq, map(CURRENT.get, names), versions)):
        return window.payloads
    return [
        payload
        if CURRENT.get(name) == version
        else _encode(Outdated(name=name, schema_version=version, payload=msgspec.Raw(payload)))
        for name, version, payload in zip(names, versions, window.payloads, strict=True)
    ]
