"""The present master key, which everything new is derived from, and former ones, whose derived values are still recognized."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence

MASTER_KEY_BYTES = 32


class MasterKeys:
    """`present` and `former`: 32 bytes each, `former` in the order of the setting, oldest first. Iterating begins with the present one."""

    __slots__ = ("_former", "present")

    def __init__(self, present: bytes, former: Sequence[bytes] = ()) -> None:
        assert all(len(key) == MASTER_KEY_BYTES for key in (present, *former))
        self.present = present
        # Newest first: it is the likeliest.
        self._former = tuple(key for key in reversed(former) if key != present)

    def __iter__(self) -> Iterator[bytes]:
        yield self.present
        yield from self._former

    def __repr__(self) -> str:
        return f"MasterKeys('***', {len(self._former)} former)"

    def find_key(self, derived: str, derive: Callable[[bytes], str]) -> bytes | None:
        """The master key for which `derive` returns `derived`; None if there is none. Both must be ASCII."""
        found = [key for key in self if hmac.compare_digest(derive(key), derived)]
        return found[0] if found else None
