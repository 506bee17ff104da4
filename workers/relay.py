"""The relay: follows the log and hints at the instances that something happened to.

Any number of relays may run: each leases the lanes that have moved with `FOR UPDATE SKIP LOCKED` and moves their
checkpoints in the same transaction, after the hints are out. A crash in between means a second hint, never none; one that is
frozen there holds them for half a minute.

A lane with a hole is parked, with an alarm in the log and in its checkpoint, and never passed over; the other lanes go on.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from redis.exceptions import RedisError

from events import types as e
from events.codec import tag_of
from events.errors import LogCorrupted
from events.exchange import Rows, Statement, array, exchange, number
from events.lease import lease
from events.patience import patiently, run
from projections import checkpoint
from projections.checkpoint import Move
from workers.broker import ADVANCE, HintSender
from workers.enduring import enduring
from workers.head_watcher import HeadWatcher, rest
from workers.sql import OPERATIONS

_ENTER_LANES = OPERATIONS["enter_lanes"]
FOLLOWER = "relay"

#: How many events of one lane are taken at a time.
LANE_BATCH_MAX = 1_000

#: What a worker records in the middle of its work on an instance: it goes on by itself. Where it dies before it can, the
#: reconciler knows what is owed.
WORKERS_OWN = [
    tag_of(event)
    for event in (
        e.PlacementChosen,
        e.AddressReserved,
        e.ServerIntended,
        e.ServerCreated,
        e.ServerDiscarded,
        e.TeardownStepDone,
        # It waits before it goes on.
        e.TeardownBlocked,
        # Or a customer, who rotates it; nothing is owed for that.
        e.AgentKeyRevoked,
    )
]

LOOK = Statement(OPERATIONS["new_lanes"], (FOLLOWER.encode(), array(WORKERS_OWN), b"%d" % LANE_BATCH_MAX))

#: How long a wake-up waits for others before the look that serves them all.
BURST_S = 0.01

#: Pause after a failure of Redis or PostgreSQL.
RECOVER_S = 0.5

_log = structlog.get_logger(__name__)


class Relay:
    def __init__(self, pool: AsyncConnectionPool, hints: HintSender, watcher: HeadWatcher) -> None:
        self._pool = pool
        self._hints = hints
        self._watcher = watcher

    async def run(self) -> None:
        """Follow for ever."""
        entered = False
        while True:
            moved = self._watcher.moved
            async with enduring("relay", recover_s=RECOVER_S):
                if not entered:
                    await run(self._pool, _ENTER_LANES, (FOLLOWER,))
                    entered = True
                while await patiently(self._pool, self._follow):
                    pass
            await rest(moved)
            # A burst of commits wakes us once: what follows within the pause shares a look.
            await asyncio.sleep(BURST_S)

    async def _follow(self, connection: AsyncConnection) -> bool:
        """Hint at what is new in every lane that nobody else has leased. True where there may be more."""
        async with lease(connection, LOOK) as rows:
            lanes = lanes_of(rows)
            whole = [lane for lane in lanes if await self._is_whole(connection, lane)]
            silent = await self._hint(list(dict.fromkeys(stream_id for lane in whole for stream_id in lane.due)))
            if silent is None and whole:
                moves = [Move(FOLLOWER, lane.number, lane.seq, lane.seq + len(lane.seqs)) for lane in whole]
                # Not asked whether they were: they are leased, and a hint that comes again costs nothing.
                await exchange(connection, [checkpoint.move(moves)])
        if silent is not None:
            # Only now: a lane that was parked stays so, whatever has become of the others' hints.
            raise silent
        return any(len(lane.seqs) == LANE_BATCH_MAX for lane in whole)

    async def _hint(self, due: list[UUID]) -> RedisError | None:
        """Hint at what is due; what Redis says against it."""
        if due:
            try:
                # A full queue is no reason to wait: the reconciler knows what is owed.
                await asyncio.to_thread(self._hints.send, ADVANCE, due)
            except RedisError as error:
                return error
        return None

    async def _is_whole(self, connection: AsyncConnection, lane: Lane) -> bool:
        """Whether a lane's new events leave no number out; one that does is parked, loudly."""
        try:
            _check(lane)
        except LogCorrupted as error:
            _log.critical("log_corrupted", lane=lane.number, after=lane.seq, error=str(error))
            await exchange(connection, [checkpoint.park(FOLLOWER, lane.number, error=str(error))])
            return False
        return True


class Lane(NamedTuple):
    """A leased lane: how far it has been followed, its head, the numbers of what is new, and the instances to which that owes a look."""

    number: int
    seq: int
    head: int
    seqs: list[int]
    due: list[UUID]


def lanes_of(rows: Rows) -> list[Lane]:
    lanes: dict[int, Lane] = {}
    for lane, seq, head, event_seq, stream_id, owed in rows:
        found = lanes.setdefault(number(lane), Lane(number(lane), number(seq), number(head), [], []))
        if event_seq is not None:
            assert stream_id is not None
            found.seqs.append(number(event_seq))
            if owed == b"t":
                found.due.append(UUID(stream_id.decode()))
    return list(lanes.values())


def _check(lane: Lane) -> None:
    """Raises `LogCorrupted` where a number is missing, in between or before the lane's head."""
    for expected, found in enumerate(lane.seqs, start=lane.seq + 1):
        if found != expected:
            raise LogCorrupted(lane.number, expected, f"the next event is {found}")
    if len(lane.seqs) < min(lane.head - lane.seq, LANE_BATCH_MAX):
        missing = lane.seq + len(lane.seqs) + 1
        raise LogCorrupted(lane.number, missing, f"there is no such event, and the head is {lane.head}")
