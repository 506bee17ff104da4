"""Reads server-sent events as model endpoints send them: one `data:` line an event (https://html.spec.whatwg.org)."""

from __future__ import annotations

from collections.abc import Iterator


class LineTooLong(Exception):
    pass


class DataLines:
    """Feed it bytes as they come; it gives the content of each complete `data:` line. Comments and other fields are nothing.

    Raises `LineTooLong` for a line that does not end.
    """

    def __init__(self, *, line_max_bytes: int) -> None:
        self._rest = b""
        self._line_max_bytes = line_max_bytes

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > self._line_max_bytes:
            raise LineTooLong
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
