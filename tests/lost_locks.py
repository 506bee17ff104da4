"""Takes the locks of workers away, and records what another worker does meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import Any, Self
from uuid import UUID

from msgspec.structs import replace

from events import commands as c
from workers.deps import Deps

#: As a restart of the database or a failover does it.
#: Until they are gone: a session that is only told to end may still have its locks.
END_LOCK_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'hydracore-locks'
"""


@dataclass(frozen=True, kw_only=True)
class ClockWatchingDeps(Deps):
    """A worker's parts that signal when it reads its clock, which is the last thing that it does before it records something."""

    clock_read: asyncio.Event

    @classmethod
    def of(cls, deps: Deps, **changes: Any) -> Self:
        return cls(
            **{each.name: getattr(deps, each.name) for each in fields(Deps)} | changes, clock_read=asyncio.Event()
        )

    def now_ms(self) -> int:
        self.clock_read.set()
        return super().now_ms()


async def record_now(deps: Deps, instance_id: UUID, command: c.AnyCommand) -> None:
    """Execute the command with the present time."""
    await deps.store.execute(instance_id, replace(command, at_ms=deps.now_ms()), deps.origin(instance_id))
