"""The follower: brings projections up to the log, a batch of lanes at a time, rows and checkpoints in one transaction.

Projections that are equally far share what is read, so that one more costs little more than its own rows. Lanes are leased with
`FOR UPDATE SKIP LOCKED`, so any number of followers share the work and none repeats it; one that is frozen, or whose machine is
lost, holds them for half a minute. An event that a projection cannot take parks its lane right before it, with the error in the
checkpoint; its other lanes go on, and so do the other projections. A lane that lacks an event is parked there too, with an alarm,
and never passed over. Where the code has another version than the table, nothing is done: the code that fits the table follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from events.errors import StoreUnavailable
from events.exchange import Statement, array, exchange, number
from events.lease import lease
from events.patience import may_pass, patiently
from events.sql import Statements
from projections import checkpoint
from projections.checkpoint import Move
from projections.definition import Followed
from projections.fact import Place, Position, Read, Reader, Skipped, read_facts, reading

_SQL = Statements("projections", "follower.sql")
_ENTER_LANES = _SQL["enter_lanes"]
_LEASE_LANES = _SQL["lease_lanes"]

#: How many events are read in one transaction, about, unless they are large: the lanes share them.
BATCH_MAX = 4_000

#: How many small events of a lane are read in one transaction at least, however many lanes share it.
LANE_BATCH_MIN = 50

_log = structlog.get_logger(__name__)


class _Reached(NamedTuple):
    """How far a projection got in a lane that it had leased, and why no farther if it is parked there."""

    name: str
    lane: int
    before: int
    after: int
    error: str | None


class Follower:
    """Follows with all of `projections` at once."""

    def __init__(self, pool: AsyncConnectionPool, *projections: Followed) -> None:
        self._pool = pool
        self._projections = {one.name: (one, Reader.of(one)) for one in projections}
        self._names = [one.name for one in projections]
        versions = array(str(one.version) for one in projections)
        self._lease_lanes = Statement(_LEASE_LANES, (array(self._names), versions))

    async def enter(self) -> None:
        """Take part in every lane, from its beginning where nobody has been before and the projection is known."""
        await patiently(self._pool, lambda c: c.execute(_ENTER_LANES, (self._names,)))

    async def catch_up(self) -> int:
        """Take everything that is new in the lanes that nobody else holds; how many events that were, in every projection
        anew.

        Raises `StoreUnavailable`.
        """
        taken, more = 0, True
        while more:
            try:
                count, more = await patiently(self._pool, self._step)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - whose it is shows where each projection has a savepoint
                _log.warning("projection_failed", error=type(error).__name__)
                count, more = await patiently(self._pool, partial(self._step, apart=True))
            taken += count
        return taken

    async def _step(self, connection: AsyncConnection, *, apart: bool = False) -> tuple[int, bool]:
        """One batch of the lanes that have something new; how many events were taken, and whether a lane may have more.

        What one projection trips over undoes all of it, unless each is taken `apart`, behind a savepoint: then it is that one's
        own affair, and parks its lane.
        """
        async with lease(connection, self._lease_lanes) as leased:
            leases: dict[str, list[Place]] = {}
            heads: dict[int, int] = {}
            for name, lane, seq, head in leased:
                assert name is not None
                leases.setdefault(name.decode(), []).append((number(lane), number(seq)))
                heads[number(lane)] = number(head)
            if not leases:
                return 0, False
            places = sorted({place for of_one in leases.values() for place in of_one})
            limit = max(LANE_BATCH_MIN, BATCH_MAX // len(places))
            readers = [self._projections[name][1] for name in leases]
            found = await read_facts(connection, places, readers, heads=heads, limit=limit)
            for hole in found.holes.values():
                _log.critical("log_corrupted", lane=hole.lane, error=str(hole))
            reached: list[_Reached] = []
            changes: list[Statement] = []
            for name, of_one in leases.items():
                parked: dict[int, str] = {}
                positions = [position for place in of_one for position in found.positions[place]]
                if apart:
                    taken = await self._take_what_can_be(connection, name, positions, found.skipped, parked)
                else:
                    changes += await self._changes(reading(connection), name, positions, found.skipped)
                    taken = positions
                last = {position.lane: position.seq for position in taken}
                for lane, seq in of_one:
                    hole = found.holes.get((lane, seq))
                    error = parked.get(lane, None if hole is None else str(hole))
                    reached.append(_Reached(name, lane, seq, last.get(lane, seq), error))
            await self._note(connection, reached, changes, prepared=not apart)
            full = any((one.lane, one.before) in found.full for one in reached if one.error is None)
            return sum(one.after - one.before for one in reached), full

    async def _note(
        self, connection: AsyncConnection, reached: list[_Reached], changes: list[Statement], *, prepared: bool
    ) -> None:
        """Change the tables, move the checkpoints, and park."""
        moves = [Move(one.name, one.lane, one.before, one.after) for one in reached if one.after > one.before]
        parks: list[Statement] = []
        for one in reached:
            if one.error is not None:
                _log.error("lane_parked", follower=one.name, lane=one.lane, seq=one.after + 1, error=one.error)
                parks.append(checkpoint.park(one.name, one.lane, error=one.error))
        moved, *_ = await exchange(connection, [checkpoint.move(moves), *changes, *parks], prepared=prepared)
        assert len(moved) == len(moves), "a leased checkpoint is nobody else's"

    async def _changes(self, read: Read, name: str, positions: list[Position], skipped: Skipped) -> Sequence[Statement]:
        """What has one projection take all that was found in its lanes. Raises whatever it trips over."""
        projection, reader = self._projections[name]
        facts = reader.decode(positions, skipped)
        return await projection.changes(read, facts) if facts else ()

    async def _take_what_can_be(
        self,
        connection: AsyncConnection,
        name: str,
        positions: list[Position],
        skipped: Skipped,
        parked: dict[int, str],
    ) -> list[Position]:
        """Apply what can be applied, and say what that was. A batch that fails is halved until the culprit is alone.

        A lane in which an event failed goes into `parked`, with the error, and nothing after that event is taken.
        """
        positions = [position for position in positions if position.lane not in parked]
        if not positions:
            return []
        try:
            async with connection.transaction():
                changes = await self._changes(reading(connection, prepared=False), name, positions, skipped)
                await exchange(connection, changes, prepared=False)
                return positions
        except Exception as error:
            if isinstance(error, psycopg.Error) and may_pass(error):
                raise
            if len(positions) == 1:
                (refused,) = positions
                # Not what the error says, here and in the checkpoint: that may be of what the event says.
                cause = type(error).__name__
                _log.error("event_refused", follower=name, lane=refused.lane, seq=refused.seq, error=cause)
                parked[refused.lane] = f"{cause} ({refused.type})"
                return []
        middle = len(positions) // 2
        first = await self._take_what_can_be(connection, name, positions[:middle], skipped, parked)
        return first + await self._take_what_can_be(connection, name, positions[middle:], skipped, parked)
