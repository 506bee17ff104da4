"""Instances whose history cannot be read: an alarm, and no reason to leave the others alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import structlog

from events.errors import EventUnreadable, LogCorrupted

#: The code of what cannot be done because an instance's history cannot be read.
HISTORY_UNREADABLE: Final = "history_unreadable"

#: What the store raises of one.
UNREADABLE: Final = (LogCorrupted, EventUnreadable)

_log = structlog.get_logger(__name__)


class HistoryUnreadable(Exception):
    """The log contradicts itself about an instance, or a newer HydraCore has written there."""

    def __init__(self, instance_id: UUID) -> None:
        super().__init__(f"The history of {instance_id} cannot be read")
        self.instance_id = instance_id


@contextmanager
def reading(instance_id: UUID) -> Generator[None]:
    """Around what reads the instance's history. Raises `HistoryUnreadable`, with an alarm: the other instances go on."""
    try:
        yield
    except UNREADABLE as error:
        # Not what the error says: that may be of what the event says.
        _log.error("history_unreadable", instance_id=str(instance_id), error=type(error).__name__)
        raise HistoryUnreadable(instance_id) from error
