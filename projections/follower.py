"""The follower: brings a projection up to the log, a batch of lanes at a time, rows and checkpoints in one transaction.

Lanes are leased with `FOR UPDATE SKIP LOCKED`, so any number of followers share the work and none repeats it. An event
that a projection cannot take parks its lane right before it, with the error in the checkpoint; the other lanes go on. A
follower whose code has another version than the table does nothing: the code that fits the table follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.errors import LogCorrupted
from events.patience import patiently
from events.sql import Statements
from projections.fact import Fact, Position, Reader, decode_facts, read_facts

_SQL = Statements("projections", "follower.sql")
_ENTER_LANES = _SQL["enter_lanes"]
_LEASE_LANES = _SQL["lease_lanes"]
_MOVE_CHECKPOINTS = _SQL["move_checkpoints"]
_PARK = _SQL["park"]
_LAG = _SQL["lag"]

#: How many events are taken in one transaction, about: the lanes share them.
BATCH_MAX = 4_000

#: How many events of a lane are taken in one transaction at least, however many lanes share it.
LANE_BATCH_MIN = 50

#: How long a parked lane rests before its event is tried again.
PARKED_S = 30.0

_log = structlog.get_logger(__name__)


class FollowedProjection(Protocol):
    """A read table that follows the log. `types`: the stored names of the events it wants, None for all."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def types(self) -> tuple[str, ...] | None: ...

    async def apply(self, connection: AsyncConnection, facts: Sequence[Fact]) -> None:
        """Fold `facts`, those of each lane in order, into the table. Runs in the checkpoint's transaction."""
        ...


class Follower:
    def __init__(self, pool: AsyncConnectionPool, projection: FollowedProjection) -> None:
        self._pool = pool
        self._projection = projection
        self._reader = Reader(projection.name, projection.version, projection.types)

    async def enter(self) -> None:
        """Take part in every lane, from its beginning where nobody has been before and the projection is known."""
        await patiently(self._pool, lambda c: c.execute(_ENTER_LANES, (self._projection.name,)))

    async def catch_up(self) -> int:
        """Take everything that is new in the lanes that nobody else holds; how many events that were.

        Raises `StoreUnavailable`, and `LogCorrupted` where a lane has a hole.
        """
        taken, more = 0, True
        while more:
            count, more = await patiently(self._pool, self._step)
            taken += count
        return taken

    async def lag(self) -> list[tuple[int, int, str | None]]:
        """(lane, events behind, error where it is parked), for every lane."""

        async def read(connection: AsyncConnection) -> list[tuple[int, int, str | None]]:
            return await (await connection.execute(_LAG, (self._projection.name,))).fetchall()

        return await patiently(self._pool, read)

    async def _step(self, connection: AsyncConnection) -> tuple[int, bool]:
        """One batch of the lanes that have something new; how many events were taken, and whether a lane may have more."""
        name, version = self._projection.name, self._projection.version
        # In a pipeline, what needs no answer travels with what does: a step waits for the server half as often.
        async with connection.pipeline() as pipeline, connection.transaction():
            leased = await connection.execute(_LEASE_LANES, {"follower": name, "version": version}, prepare=True)
            before = dict(await leased.fetchall())
            if not before:
                return 0, False
            limit = max(LANE_BATCH_MIN, BATCH_MAX // len(before))
            positions = await read_facts(connection, self._reader, after=before, limit=limit)
            parked: dict[int, str] = {}
            taken = await self._take(connection, positions, parked)
            after = before | {position.lane: position.seq for position in taken}
            lanes = [lane for lane in before if after[lane] > before[lane]]
            moved = await connection.execute(
                _MOVE_CHECKPOINTS,
                {
                    "follower": name,
                    "lanes": lanes,
                    "before": [before[lane] for lane in lanes],
                    "after": [after[lane] for lane in lanes],
                },
                prepare=True,
            )
            await pipeline.sync()
            assert moved.rowcount == len(lanes), "a leased checkpoint is nobody else's"
            for lane, error in parked.items():
                _log.error("lane_parked", follower=name, lane=lane, seq=after[lane] + 1, error=error)
                park = {"follower": name, "lane": lane, "pause_s": PARKED_S, "error": error}
                await connection.execute(_PARK, park)
            read = Counter(position.lane for position in positions if position.lane not in parked)
            return len(taken), max(read.values(), default=0) >= limit

    async def _take(
        self, connection: AsyncConnection, positions: list[Position], parked: dict[int, str]
    ) -> list[Position]:
        """Apply what can be applied, and say what that was. A batch that fails is halved until the culprit is alone.

        A lane in which an event failed goes into `parked`, with the error, and nothing after that event is taken.
        """
        positions = [position for position in positions if position.lane not in parked]
        if not positions:
            return []
        try:
            async with connection.transaction():
                facts = decode_facts(positions)
                if facts:
                    await self._projection.apply(connection, facts)
        except (psycopg.OperationalError, psycopg.InterfaceError, LogCorrupted):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a projection trips over parks its lane, loudly
            if len(positions) == 1:
                _log.exception("event_refused", follower=self._projection.name)
                parked[positions[0].lane] = type(error).__name__
                return []
        else:
            return positions
        middle = len(positions) // 2
        first = await self._take(connection, positions[:middle], parked)
        return first + await self._take(connection, positions[middle:], parked)
