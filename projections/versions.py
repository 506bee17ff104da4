"""Which version of an inline projection is written: the one whose tables are live, as the database says.

A release that brings a new version keeps the old one beside it, as `Versions(new, old)`. It writes the old one's rows until a
rebuild has put the new one's tables in place, and the new one's from then on; so processes of either release may run side
by side until the swap. The release after it drops the old one.
"""

from __future__ import annotations

from typing import Any

from events.record import Append
from projections.definition import Inline


class OneVersion:
    """What an inline projection does that has one version: nothing but wait until its table is live again."""

    def serve(self, version: int) -> None:
        """The append is tried again for as long as it may take, and fails where this code cannot write what is live."""


class Versions:
    """One inline projection in several versions, newest first. `newest` is what a rebuild builds."""

    def __init__(self, newest: Inline, *older: Inline) -> None:
        assert all(one.name == newest.name and one.version < newest.version for one in older), "newest first"
        self.newest = newest
        self._known = {one.version: one for one in (newest, *older)}
        self._served = newest

    @property
    def known(self) -> dict[int, Inline]:
        """Every version that this code can write, by its number."""
        return self._known

    @property
    def name(self) -> str:
        return self.newest.name

    @property
    def version(self) -> int:
        return self._served.version

    @property
    def statement(self) -> bytes:
        return self._served.statement

    def serve(self, version: int) -> None:
        self._served = self._known.get(version, self._served)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        return self._served.rows(append)
