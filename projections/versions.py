"""Which version of an inline projection is written: the one whose tables are live in the database.

A release with a new version keeps the old one beside it, as `Versions(new, old)`. It writes the old version's rows
until a rebuild has made the new version's tables live, and the new version's rows from then on. So processes of both
releases may run side by side until the swap. The next release drops the old version.
"""

from __future__ import annotations

from typing import Any

from events.record import Append
from projections.definition import Inline


class OneVersion:
    """Base class of inline projections with a single version."""

    def use_version(self, version: int) -> None:
        """Ignore that another `version` is live: the append is retried for as long as it may, and then fails."""


class Versions:
    """An inline projection in several versions, newest first. A rebuild builds `newest`."""

    def __init__(self, newest: Inline, *older: Inline) -> None:
        assert all(one.name == newest.name and one.version < newest.version for one in older), "newest first"
        self.newest = newest
        self._known = {one.version: one for one in (newest, *older)}
        self._active = newest

    @property
    def known(self) -> dict[int, Inline]:
        """Every version that this code can write, by number."""
        return self._known

    @property
    def name(self) -> str:
        return self.newest.name

    @property
    def version(self) -> int:
        return self._active.version

    @property
    def statement(self) -> bytes:
        return self._active.statement

    def use_version(self, version: int) -> None:
        self._active = self._known.get(version, self._active)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        return self._active.rows(append)
