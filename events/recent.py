"""What was in use lately, to go on from: so many values, and so many bytes of them, because one can be as large as a thousand
others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_NOTHING: Final = (None, 0)


class Recent(Generic[K, V]):
    """Values by key, the ones that were put last. The last one is kept whatever it weighs."""

    def __init__(self, *, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def __iter__(self) -> Iterator[V]:
        """From the one on that was put longest ago."""
        return (value for value, _ in self._kept.values())

    def get(self, key: K) -> V | None:
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    def weighed(self, key: K) -> tuple[V | None, int]:
        """The value, and how many bytes it was said to take."""
        return self._kept.get(key, _NOTHING)

    def put(self, key: K, value: V, *, weight: int) -> None:
        """Keep `value`, which takes so many bytes, about, in place of what was there."""
        kept = self._kept
        _, before = kept.pop(key, _NOTHING)
        kept[key] = (value, weight)
        self._bytes += weight - before
        while self._bytes > self._bytes_max or len(kept) > self._count_max:
            if len(kept) == 1:
                break
            _, (_, let_go) = kept.popitem(last=False)
            self._bytes -= let_go

    def pop(self, key: K) -> V | None:
        """The value, which is kept no longer."""
        value, weight = self._kept.pop(key, _NOTHING)
        self._bytes -= weight
        return value
