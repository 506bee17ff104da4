"""A cache of the most recently put values, bounded by count and by bytes: one value can be as large as a thousand others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ABSENT: Final = (None, 0)


class BoundedCache(Generic[K, V]):
    """Values by key. Those that were put longest ago are evicted; the newest one is kept, however large it is."""

    def __init__(self, *, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def __iter__(self) -> Iterator[V]:
        """The values, oldest first."""
        return (value for value, _ in self._entries.values())

    def get(self, key: K) -> V | None:
        kept = self._entries.get(key)
        return None if kept is None else kept[0]

    def get_with_weight(self, key: K) -> tuple[V | None, int]:
        """The value and its weight in bytes, as given to `put`; None and 0 if there is none."""
        return self._entries.get(key, _ABSENT)

    def put(self, key: K, value: V, *, weight: int) -> None:
        """Set the value of `key`. `weight`: about how many bytes it takes."""
        kept = self._entries
        _, before = kept.pop(key, _ABSENT)
        kept[key] = (value, weight)
        self._bytes += weight - before
        while self._bytes > self._bytes_max or len(kept) > self._count_max:
            if len(kept) == 1:
                break
            _, (_, evicted) = kept.popitem(last=False)
            self._bytes -= evicted

    def pop(self, key: K) -> V | None:
        """Remove the key. Returns its value; None if there is none."""
        value, weight = self._entries.pop(key, _ABSENT)
        self._bytes -= weight
        return value
