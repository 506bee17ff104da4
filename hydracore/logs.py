"""Logs are data: one JSON object a line, from our parts and from the libraries they stand on alike."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import msgspec
import structlog
from structlog.typing import Processor


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging. `level`: debug, info, warning or error. `stream`: else standard error."""
    stream = stream or sys.stderr
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
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(serializer=_to_json), foreign_pre_chain=shared
        )
    )
    # Libraries speak up from warnings on: below that, httpx prints every request and psycopg's pool every borrowing.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


def _to_json(record: object, **_: object) -> str:
    return msgspec.json.encode(record, enc_hook=repr).decode()
