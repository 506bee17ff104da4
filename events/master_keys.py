"""The master key and those beside it: the present one makes whatever is new, what any of them made is known again."""

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
        # The younger, the likelier.
        self._former = tuple(key for key in reversed(former) if key != present)

    def __iter__(self) -> Iterator[bytes]:
        yield self.present
        yield from self._former

    def __repr__(self) -> str:
        return f"MasterKeys('***', {len(self._former)} former)"

    def maker_of(self, made: str, make: Callable[[bytes], str]) -> bytes | None:
        """The one by which `make` gives what it once made; None where none of them does. `made` and `make` are in ASCII."""
        found = [key for key in self if hmac.compare_digest(make(key), made)]
        return found[0] if found else None
