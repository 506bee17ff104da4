"""Reads the data of server-sent events (https://html.spec.whatwg.org, 9.2.6) as model endpoints send them.

Lines end in a line feed. Some endpoints leave out the blank line that ends an event.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator


class EventTooLong(Exception):
    pass


class EventReader:
    """Takes bytes as they come, and gives the data of each complete event, its lines joined by line feeds.

    If the first data line of an event is complete by itself (a JSON document or `[DONE]`), the next
    data line begins another event. Comments and other fields are ignored. Raises `EventTooLong` for
    an event of more than `event_bytes_max`.
    """

    def __init__(self, *, event_bytes_max: int) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._has_begun = False
        self._event_bytes_max = event_bytes_max

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))
        if self._data_bytes + len(self._rest) > self._event_bytes_max:
            raise EventTooLong

    def end(self) -> Iterator[bytes]:
        """The event left at the end of the stream, which some endpoints send without the blank line that ends it."""
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            line = line.removeprefix(BOM_UTF8)
        if line.startswith(b"data:"):
            # Only the first line is parsed: parsing all lines again with each new one would take quadratic time.
            if len(self._data) == 1 and _is_whole(self._data[0]):
                yield self._event()
            self._data.append(line[5:].strip())
            self._data_bytes += len(line)
        elif not line and self._data:
            yield self._event()

    def _event(self) -> bytes:
        data = b"\n".join(self._data)
        self._data, self._data_bytes = [], 0
        return data


def _is_whole(data: bytes) -> bool:
    if data == b"[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
