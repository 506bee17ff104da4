"""Changes of an instance that are made from what it is: load, look, decide, and again where somebody else was faster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID

from events.commands import AnyCommand
from events.errors import VersionConflict
from events.record import Origin, Outcome
from events.state import Instance
from events.store import RACES_MAX, EventStore
from hydracore.api.access import require_access
from hydracore.api.validation import Incoming
from hydracore.auth import Principal


class Asked(NamedTuple):
    """Who asks for something of which instance, and with which request."""

    who: Principal
    incoming: Incoming
    instance_id: UUID


class Changes:
    """Looks at instances for those who may, and changes them."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def look(self, who: Principal, instance_id: UUID) -> Instance:
        """Raises `NotFound` and `Forbidden`."""
        return require_access(who, await self._store.load(instance_id))

    async def change(
        self, asked: Asked, command_at: Callable[[Instance], Awaitable[AnyCommand]], *, origin: Origin | None = None
    ) -> Outcome:
        """Append what `command_at` asks for at the instance as it is now, under an `origin` of its own unless one is given.

        Raises `NotFound`, `Forbidden`, whatever `command_at` raises, what the write side refuses, and `VersionConflict`
        after `RACES_MAX` lost races.
        """
        origin = origin or asked.incoming.origin(asked.who.actor)
        for _ in range(RACES_MAX - 1):
            with suppress(VersionConflict):
                return await self._try(asked, command_at, origin)
        return await self._try(asked, command_at, origin)

    async def _try(
        self, asked: Asked, command_at: Callable[[Instance], Awaitable[AnyCommand]], origin: Origin
    ) -> Outcome:
        state = await self.look(asked.who, asked.instance_id)
        return await self._store.execute_at(state, asked.instance_id, await command_at(state), origin)
