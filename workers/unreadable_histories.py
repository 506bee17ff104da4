"""Handles instances whose history cannot be read: raises an alarm, and lets the work on other instances continue."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import structlog

from events.errors import EventUnreadable, LogCorrupted

#: The code of a failure whose cause is that an instance's history cannot be read.
HISTORY_UNREADABLE: Final = "history_unreadable"

#: The errors that the store raises for such a history.
HISTORY_ERRORS: Final = (LogCorrupted, EventUnreadable)

_log = structlog.get_logger(__name__)


class HistoryUnreadable(Exception):
    """An instance's history is corrupted, or was written by a newer version of HydraCore."""

    def __init__(self, instance_id: UUID) -> None:
        super().__init__(f"The history of {instance_id} cannot be read")
        self.instance_id = instance_id


@contextmanager
def reading_history(instance_id: UUID) -> Generator[None]:
    """Wraps code that reads the instance's history. Logs an alarm and raises `HistoryUnreadable` if it cannot be read."""
    try:
        yield
    except HISTORY_ERRORS as error:
        # Without the error's text, which may quote the event.
        _log.error("history_unreadable", instance_id=str(instance_id), error=type(error).__name__)
        raise HistoryUnreadable(instance_id) from error
