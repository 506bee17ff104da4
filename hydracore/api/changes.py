"""Changes that depend on an instance's state: load, check, decide, append, and repeat after a lost race."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

from events.commands import AnyCommand
from events.decide_use import require_changeable
from events.record import Origin, Outcome
from events.state import Instance
from events.store import EventStore
from hydracore.api.access import require_access
from hydracore.api.preconditions import require_match
from hydracore.api.validation import Incoming
from hydracore.auth import Principal


class RequestContext(NamedTuple):
    """Who wants something of an instance, and by which request."""

    who: Principal
    incoming: Incoming
    instance_id: UUID


class Changes:
    """Loads and changes instances, with a check of the caller's access."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def load(self, who: Principal, instance_id: UUID) -> Instance:
        """The instance's state. Raises `NotFound` and `Forbidden`."""
        return require_access(who, await self._store.load(instance_id))

    async def change(
        self,
        context: RequestContext,
        command_at: Callable[[Instance], Awaitable[AnyCommand]],
        *,
        origin: Origin | None = None,
        if_match: str | None = None,
    ) -> Outcome:
        """Execute the command that `command_at` makes for the present state. `origin`: a new one unless given.
        `if_match`: of a change of the configuration.

        Raises `NotFound`, `Forbidden`, `PreconditionFailed`, whatever `command_at` raises, and what `EventStore.change`
        does.
        """

        async def command(state: Instance | None) -> AnyCommand:
            found = require_access(context.who, state)
            if if_match is not None:
                # RFC 9110, section 13.2.1: a precondition does not count where the request would be refused without it.
                require_changeable(found)
                require_match(if_match, found)
            return await command_at(found)

        return await self._store.change(
            context.instance_id, command, origin or context.incoming.origin(context.who.actor)
        )
