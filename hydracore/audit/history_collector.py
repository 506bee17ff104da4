"""Collects the histories of streams out of the windows of their lanes, while the lanes are verified."""

from __future__ import annotations

from collections import defaultdict
from operator import eq

import msgspec

from events.ids import lane_of_bytes
from events.upcast import CURRENT_VERSIONS, OutdatedEvent
from events.window import Window

#: The most bytes of histories that are held, and the bytes that each event counts for in addition to its payload.
HELD_BYTES_MAX = 128 * 2**20
_EVENT_BYTES = 64

#: A stream is held if this byte of its id is below a limit, at first `_FULL_SHARE`. The last byte cannot be used,
#: because it determines the lane.
_SHARE_BYTE = 14
_FULL_SHARE = 256

_encode = msgspec.json.Encoder().encode


class HistoryCollector:
    """`lengths`: the number of events of each stream, by the bytes of its id. Other streams are not held.

    A stream is complete once all of its events were taken. Once more than `bytes_max` would be held, only
    half of the streams are held from then on, then a quarter, and so on.
    """

    def __init__(self, lengths: dict[bytes, int], *, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._lengths = lengths
        self._bytes_max = bytes_max
        #: By lane, because events of a stream in another lane do not belong to its history.
        self._held = defaultdict[int, dict[bytes, list[bytes]]](dict)
        self._complete: dict[bytes, list[bytes]] = {}
        self._share = _FULL_SHARE
        #: The bytes that were held at the last count, plus those that were taken since.
        self._bytes = 0
        #: The events and the bytes of the complete streams.
        self.complete_events = self.complete_bytes = 0

    def take(self, lane: int, window: Window) -> None:
        """Take the events of a valid window (`events.window`); those of each lane in order."""
        held, lengths, share = self._held[lane], self._lengths, self._share
        payloads = _as_decoded(window)
        for (stream, version), payload in zip(window.stream_versions(), payloads, strict=True):
            if version == 1 and stream[_SHARE_BYTE] < share and stream in lengths and lane_of_bytes(stream) == lane:
                history = held[stream] = list[bytes]()
            else:
                history = held.get(stream)
                if history is None:
                    continue
            history.append(payload)
            if version != len(history):
                # An event is missing or out of place: this stream is dropped.
                del held[stream]
            elif version == lengths[stream]:
                del held[stream], lengths[stream]
                self._complete[stream] = history
                self.complete_events += version
                self.complete_bytes += sum(map(len, history))
        self._bytes += _weight(payloads)
        if self._bytes > self._bytes_max:
            self._shrink_share()

    def pop_complete(self) -> dict[bytes, list[bytes]]:
        """Return and forget the complete streams: their events as `projections.sql_fragments.events_of` decodes them."""
        complete, self._complete = self._complete, {}
        self.complete_events = self.complete_bytes = 0
        return complete

    def _shrink_share(self) -> None:
        self._bytes = sum(_weight(history) for held in self._held.values() for history in held.values())
        while self._share and self._bytes > self._bytes_max // 2:
            self._share //= 2
            for held in self._held.values():
                for stream in [stream for stream in held if stream[_SHARE_BYTE] >= self._share]:
                    self._bytes -= _weight(held.pop(stream))


def _weight(payloads: list[bytes]) -> int:
    return sum(map(len, payloads)) + len(payloads) * _EVENT_BYTES


def _as_decoded(window: Window) -> list[bytes]:
    """The payloads. Those of other than current versions are wrapped with their name and version (`OutdatedEvent`)."""
    names, versions = window.type_names(), window.schema_versions
    if all(map(eq, map(CURRENT_VERSIONS.get, names), versions)):
        return window.payloads
    return [
        payload
        if CURRENT_VERSIONS.get(name) == version
        else _encode(OutdatedEvent(name=name, schema_version=version, payload=msgspec.Raw(payload)))
        for name, version, payload in zip(names, versions, window.payloads, strict=True)
    ]
