"""Logs are data: one JSON object per line, from our own code and from libraries.

A line that cannot be written is lost and raises nothing, so that neither a full disk nor a closed pipe ends a process.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

import msgspec
import structlog
from structlog.typing import Processor


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging.

    `level`: debug, info, warning or error. `stream`: standard error by default.
    """
    lines = _LineWriter(stream or sys.stderr)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Plain tracebacks: the kind with local variables would print secrets.
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(lines),  # pyright: ignore[reportArgumentType] - it writes and flushes
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(serializer=_to_json), foreign_pre_chain=shared
        )
    )
    # Libraries log from warnings on: below that, httpx logs every request, and psycopg's pool every
    # use of a connection.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


class _LineWriter(io.TextIOBase):
    """Writes whole lines to a file descriptor. A buffered stream would write torn or late lines if a write fails."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: one with a descriptor. If it is closed, or None (a process may have none), all lines are lost."""
        self._stream = stream
        self._torn = False

    def write(self, line: str, /) -> int:
        # After a line that was written in part, a line feed keeps the next one whole.
        content = (b"\n" if self._torn else b"") + line.encode()
        written = 0
        with suppress(OSError, ValueError):
            while self._stream and written < len(content):
                written += os.write(self._stream.fileno(), content[written:])
        if written:
            self._torn = written < len(content)
        return len(line)


def _to_json(record: object, **_: object) -> str:
    return msgspec.json.encode(record, enc_hook=repr).decode()
