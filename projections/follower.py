"""The follower: applies new events to followed projections, in batches of lanes.

- Rows and checkpoints change in one transaction.
- Projections at the same position of a lane share what is read there, so that one more costs little more than its own
  rows.
- Lanes are leased with `FOR UPDATE SKIP LOCKED`: any number of followers share the work, and none repeats it. A
  follower that freezes, or whose machine is lost, keeps its lanes for half a minute.
- An event that a projection refuses parks its lane for this projection, right before the event, with the error in the
  checkpoint. Other lanes and other projections continue.
- A lane that lacks an event is parked before the gap, with an alarm, and never skipped automatically.
- Where the code's version is not that of the live tables, nothing is done: processes with the matching code follow.
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
from events.exchange import Statement, array_literal, exchange, parse_int
from events.lease import lease
from events.retries import is_transient, with_retries
from events.sql import Statements
from projections import checkpoint
from projections.checkpoint import Move
from projections.definition import Followed
from projections.fact import LogEntry, Place, Read, Reader, Skipped, table_reader
from projections.fact_pages import read_facts

_SQL = Statements("projections", "follower.sql")
_CREATE_CHECKPOINTS = _SQL["create_checkpoints"]
_LEASE_LANES = _SQL["lease_lanes"]

#: About the most events that are read per transaction, unless they are large. The lanes share them.
BATCH_MAX = 4_000

#: The fewest small events of a lane that are read per transaction, however many lanes share it.
LANE_BATCH_MIN = 50

_log = structlog.get_logger(__name__)


class _Progress(NamedTuple):
    """A projection's progress in a leased lane, from `before` to `after`. `error`: why it is parked there, if so."""

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
        versions = array_literal(str(one.version) for one in projections)
        self._lease_lanes = Statement(_LEASE_LANES, (array_literal(self._names), versions))

    async def create_checkpoints(self) -> None:
        """Create checkpoints that are missing, at the beginning of their lanes, for projections that are live."""
        await with_retries(self._pool, lambda c: c.execute(_CREATE_CHECKPOINTS, (self._names,)))

    async def catch_up(self) -> int:
        """Apply all new events of the lanes that nobody else has leased. Returns how many, counted per projection.

        Raises `StoreUnavailable`.
        """
        applied, more = 0, True
        while more:
            try:
                count, more = await with_retries(self._pool, self._step)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - with a savepoint for each projection it shows which one failed
                _log.warning("projection_failed", error=type(error).__name__)
                count, more = await with_retries(self._pool, partial(self._step, isolated=True))
            applied += count
        return applied

    async def _step(self, connection: AsyncConnection, *, isolated: bool = False) -> tuple[int, bool]:
        """Apply a batch of the lanes with new events. Returns how many were applied, and whether a lane may have more.

        If a projection fails, the whole step fails, unless `isolated`: then each projection has savepoints, and only
        the lanes of the one that fails are parked.
        """
        async with lease(connection, self._lease_lanes) as leased:
            leases: dict[str, list[Place]] = {}
            heads: dict[int, int] = {}
            for name, lane, seq, head in leased:
                assert name is not None
                leases.setdefault(name.decode(), []).append((parse_int(lane), parse_int(seq)))
                heads[parse_int(lane)] = parse_int(head)
            if not leases:
                return 0, False
            places = sorted({place for of_one in leases.values() for place in of_one})
            limit = max(LANE_BATCH_MIN, BATCH_MAX // len(places))
            readers = [self._projections[name][1] for name in leases]
            found = await read_facts(connection, places, readers, heads=heads, limit=limit)
            for gap in found.gaps.values():
                _log.critical("log_corrupted", lane=gap.lane, error=str(gap))
            progress: list[_Progress] = []
            changes: list[Statement] = []
            for name, leased_places in leases.items():
                parked: dict[int, str] = {}
                entries = [entry for place in leased_places for entry in found.entries[place]]
                if isolated:
                    applied = await self._apply_accepted(connection, name, entries, found.skipped, parked)
                else:
                    changes += await self._changes(table_reader(connection), name, entries, found.skipped)
                    applied = entries
                last = {entry.lane: entry.seq for entry in applied}
                for lane, seq in leased_places:
                    gap = found.gaps.get((lane, seq))
                    error = parked.get(lane, None if gap is None else str(gap))
                    progress.append(_Progress(name, lane, seq, last.get(lane, seq), error))
            await self._save_progress(connection, progress, changes, prepared=not isolated)
            full = any((one.lane, one.before) in found.full for one in progress if one.error is None)
            return sum(one.after - one.before for one in progress), full

    async def _save_progress(
        self, connection: AsyncConnection, progress: list[_Progress], changes: list[Statement], *, prepared: bool
    ) -> None:
        """Change the tables, move the checkpoints, and park lanes."""
        moves = [Move(one.name, one.lane, one.before, one.after) for one in progress if one.after > one.before]
        parks: list[Statement] = []
        for one in progress:
            if one.error is not None:
                _log.error("lane_parked", follower=one.name, lane=one.lane, seq=one.after + 1, error=one.error)
                parks.append(checkpoint.park(one.name, one.lane, error=one.error))
        moved, *_ = await exchange(connection, [checkpoint.move(moves), *changes, *parks], prepared=prepared)
        assert len(moved) == len(moves), "a leased checkpoint is nobody else's"

    async def _changes(self, read: Read, name: str, entries: list[LogEntry], skipped: Skipped) -> Sequence[Statement]:
        """The statements that apply what was found to one projection. Raises what the projection raises."""
        projection, reader = self._projections[name]
        facts = reader.decode(entries, skipped)
        return await projection.changes(read, facts) if facts else ()

    async def _apply_accepted(
        self,
        connection: AsyncConnection,
        name: str,
        entries: list[LogEntry],
        skipped: Skipped,
        parked: dict[int, str],
    ) -> list[LogEntry]:
        """Apply what a projection accepts, and return that.

        A batch that fails is halved until the refused event is alone. The lane of a refused event is added to `parked`,
        with the error, and nothing after the event is applied.
        """
        entries = [entry for entry in entries if entry.lane not in parked]
        if not entries:
            return []
        try:
            async with connection.transaction():
                changes = await self._changes(table_reader(connection, prepared=False), name, entries, skipped)
                await exchange(connection, changes, prepared=False)
                return entries
        except Exception as error:
            if isinstance(error, psycopg.Error) and is_transient(error):
                raise
            if len(entries) == 1:
                (refused,) = entries
                # Not the text of the error, neither here nor in the checkpoint: it may quote the event's contents.
                cause = type(error).__name__
                _log.error("event_refused", follower=name, lane=refused.lane, seq=refused.seq, error=cause)
                parked[refused.lane] = f"{cause} ({refused.type})"
                return []
        middle = len(entries) // 2
        first = await self._apply_accepted(connection, name, entries[:middle], skipped, parked)
        return first + await self._apply_accepted(connection, name, entries[middle:], skipped, parked)
