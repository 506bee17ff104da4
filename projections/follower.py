"""The follower: brings a projection up to the log, lane by lane, each batch and its checkpoint in one transaction.

Lanes are leased with `FOR UPDATE SKIP LOCKED`, so any number of followers share the work and none repeats it. An event
that a projection cannot take parks its lane, with the error in the checkpoint; the other lanes go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.errors import LogCorrupted
from events.patience import patiently
from events.record import Recorded
from events.sql import Statements
from events.store import read_lane

_SQL = Statements("projections", "follower.sql")
_ENTER_LANES = _SQL["enter_lanes"]
_LEASE_LANE = _SQL["lease_lane"]
_MOVE_CHECKPOINT = _SQL["move_checkpoint"]
_PARK = _SQL["park"]
_LAG = _SQL["lag"]

#: How many events of one lane are taken in one transaction.
BATCH_MAX = 1_000

#: How long a parked lane rests before its event is tried again.
PARKED_S = 30.0

_log = structlog.get_logger(__name__)


class FollowedProjection(Protocol):
    """A read table that follows the log. `types`: the stored names of the events it wants."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def types(self) -> tuple[str, ...]: ...

    async def apply(self, connection: AsyncConnection, events: Sequence[Recorded]) -> None:
        """Fold `events`, all of one lane and in order, into the table. Runs in the checkpoint's transaction."""
        ...


class Follower:
    def __init__(self, pool: AsyncConnectionPool, projection: FollowedProjection) -> None:
        self._pool = pool
        self._projection = projection

    async def enter(self) -> None:
        """Take part in every lane, from its beginning where nobody has been before."""
        await patiently(self._pool, lambda c: c.execute(_ENTER_LANES, (self._projection.name,)))

    async def catch_up(self) -> int:
        """Take everything that is new in the lanes that nobody else holds; how many events that were.

        Raises `StoreUnavailable`, and `LogCorrupted` where a lane has a hole.
        """
        taken, done = 0, list[int]()
        while True:
            step = await patiently(self._pool, lambda c: self._step(c, done))
            if step is None:
                return taken
            lane, count = step
            taken += count
            if count < BATCH_MAX:
                done.append(lane)

    async def lag(self) -> list[tuple[int, int, str | None]]:
        """(lane, events behind, error where it is parked), for every lane."""

        async def read(connection: AsyncConnection) -> list[tuple[int, int, str | None]]:
            return await (await connection.execute(_LAG, (self._projection.name,))).fetchall()

        return await patiently(self._pool, read)

    async def _step(self, connection: AsyncConnection, done: list[int]) -> tuple[int, int] | None:
        """One batch of one lane: (lane, events taken), or None where no lane is left."""
        name = self._projection.name
        async with connection.transaction():
            leased = await connection.execute(_LEASE_LANE, {"follower": name, "done": done}, prepare=True)
            row = await leased.fetchone()
            if row is None:
                return None
            lane, seq = row
            events = await read_lane(connection, lane=lane, after=seq, limit=BATCH_MAX)
            wanted = [recorded for recorded in events if recorded.type in self._projection.types]
            place = {"follower": name, "lane": lane, "before": seq}
            try:
                if wanted:
                    async with connection.transaction():
                        await self._projection.apply(connection, wanted)
            except (psycopg.OperationalError, psycopg.InterfaceError, LogCorrupted):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a projection trips over parks its lane, loudly
                _log.exception("lane_parked", follower=name, lane=lane, after=seq)
                await connection.execute(_PARK, {**place, "pause_s": PARKED_S, "error": type(error).__name__})
                return lane, 0
            await connection.execute(_MOVE_CHECKPOINT, {**place, "seq": seq + len(events)}, prepare=True)
            return lane, len(events)
