"""Reads server-sent events (https://html.spec.whatwg.org, 9.2.6) as model endpoints send them: their data, in lines that end in a
line feed. Some leave out the blank line that ends an event."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator


class EventTooLong(Exception):
    pass


class EventReader:
    """Feed it bytes as they come; it gives the data of each whole event, its lines joined by line feeds. A first line that is whole by
    itself, a JSON document or `[DONE]`, is an event where more data follow it. Comments and other fields are nothing.

    Raises `EventTooLong` for an event that does not end.
    """

    def __init__(self, *, event_max_bytes: int) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._has_begun = False
        self._event_max_bytes = event_max_bytes

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))
        if self._data_bytes + len(self._rest) > self._event_max_bytes:
            raise EventTooLong

    def end(self) -> Iterator[bytes]:
        """What is left at the end of the stream: some endpoints end it without the blank line that ends an event."""
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            line = line.removeprefix(BOM_UTF8)
        if line.startswith(b"data:"):
            # Only the first one is looked at: all together, with each line anew, would take long where there are many.
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
