"""Keeps the latest requests, bounded in number and in bytes, as one may be as long as a thousand others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: The most bytes of all kept requests' bodies together.
BODIES_BYTES_MAX: Final = 32 * 1024 * 1024


class RecentRecords(Generic[T]):
    """Records, oldest first. The latest one is kept however long its request was."""

    def __init__(self, *, count_max: int) -> None:
        self._count_max = count_max
        self._kept: deque[tuple[T, int]] = deque()
        self._bytes = 0

    def __iter__(self) -> Iterator[T]:
        return (record for record, _ in self._kept)

    def add(self, record: T, *, body: bytes) -> None:
        """Add the record of a request with this body, and delete the oldest ones while the bounds are exceeded."""
        self._kept.append((record, len(body)))
        self._bytes += len(body)
        while len(self._kept) > self._count_max or (self._bytes > BODIES_BYTES_MAX and len(self._kept) > 1):
            _, gone_bytes = self._kept.popleft()
            self._bytes -= gone_bytes

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0
