"""Changes of an instance that are made from what it is: load, look, decide, and again where somebody else was faster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

from events.commands import AnyCommand
from events.record import Origin, Outcome
from events.state import Instance
from events.store import EventStore
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

        Raises `NotFound`, `Forbidden`, whatever `command_at` raises, and what `EventStore.change` does.
        """

        async def command(state: Instance | None) -> AnyCommand:
            return await command_at(require_access(asked.who, state))

        return await self._store.change(asked.instance_id, command, origin or asked.incoming.origin(asked.who.actor))
