"""The relay: follows the log and sends hints for the instances that have new events.

Any number of relays may run. Each leases the lanes with new events with `FOR UPDATE SKIP LOCKED`, sends the hints, and then moves the
checkpoints of these lanes in the same transaction. If a relay crashes in between, hints are sent twice, but none is lost. If it freezes
there, its lanes wait for half a minute.

A lane with a missing event is parked, with an alarm in the logs and in its checkpoint. The gap is never skipped. The other lanes go on.
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
from events.exchange import Rows, Statement, array_literal, exchange, parse_int
from events.lease import lease
from events.retries import run, with_retries
from projections import checkpoint
from projections.checkpoint import Move
from workers.broker import ADVANCE, HintSender
from workers.error_boundary import error_boundary
from workers.head_watcher import HeadWatcher, wait_for_events
from workers.sql import OPERATIONS

_CREATE_CHECKPOINTS = OPERATIONS["create_checkpoints"]
FOLLOWER = "relay"

#: The most events of one lane per look.
LANE_BATCH_MAX = 1_000

#: The events that a worker appends in the middle of its work on an instance. It continues without a hint. If it dies, the reconciler
#: finds the work that is due.
EVENTS_WITHOUT_HINT = [
    tag_of(event)
    for event in (
        e.PlacementChosen,
        e.AddressReserved,
        e.ServerIntended,
        e.ServerCreated,
        e.ServerDiscarded,
        e.TeardownStepDone,
        # The worker pauses after this one.
        e.TeardownBlocked,
        # Also appended when a customer rotates the key, after which the workers have nothing to do.
        e.AgentKeyRevoked,
    )
]

LEASE_NEW_EVENTS = Statement(
    OPERATIONS["lease_new_events"], (FOLLOWER.encode(), array_literal(EVENTS_WITHOUT_HINT), b"%d" % LANE_BATCH_MAX)
)

#: The pause between a wake-up and the next look, which then also covers the wake-ups in between.
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
        has_checkpoints = False
        while True:
            new_events = self._watcher.new_events
            async with error_boundary("relay", recover_s=RECOVER_S):
                if not has_checkpoints:
                    await run(self._pool, _CREATE_CHECKPOINTS, (FOLLOWER,))
                    has_checkpoints = True
                while await with_retries(self._pool, self._follow):
                    pass
            await wait_for_events(new_events)
            # All commits of a burst share one look.
            await asyncio.sleep(BURST_S)

    async def _follow(self, connection: AsyncConnection) -> bool:
        """Send hints for the new events of all lanes that no other relay has leased. True if there may be more events."""
        async with lease(connection, LEASE_NEW_EVENTS) as rows:
            lanes = lanes_of(rows)
            complete = [lane for lane in lanes if await self._is_complete(connection, lane)]
            redis_error = await self._send_hints(
                list(dict.fromkeys(stream_id for lane in complete for stream_id in lane.due))
            )
            if redis_error is None and complete:
                moves = [Move(FOLLOWER, lane.number, lane.seq, lane.seq + len(lane.seqs)) for lane in complete]
                # The result is not checked: the lanes are leased, and a second hint would do no harm.
                await exchange(connection, [checkpoint.move(moves)])
        if redis_error is not None:
            # Raised only after the transaction is committed: a lane that was parked stays parked even if Redis failed.
            raise redis_error
        return any(len(lane.seqs) == LANE_BATCH_MAX for lane in complete)

    async def _send_hints(self, due: list[UUID]) -> RedisError | None:
        """Send hints for the instances `due`. Returns the error of Redis, if it failed."""
        if due:
            try:
                # If the queue is full, the hints are dropped: the reconciler finds the work that is due.
                await asyncio.to_thread(self._hints.send, ADVANCE, due)
            except RedisError as error:
                return error
        return None

    async def _is_complete(self, connection: AsyncConnection, lane: Lane) -> bool:
        """Whether no event of the lane is missing. Otherwise the lane is parked, with an alarm."""
        try:
            _check(lane)
        except LogCorrupted as error:
            _log.critical("log_corrupted", lane=lane.number, after=lane.seq, error=str(error))
            await exchange(connection, [checkpoint.park(FOLLOWER, lane.number, error=str(error))])
            return False
        return True


class Lane(NamedTuple):
    """A leased lane.

    `seq`: the number of the last event that was followed. `head`: that of the lane's last event. `seqs`: the numbers of the new events.
    `due`: the instances of those new events that leave work to do.
    """

    number: int
    seq: int
    head: int
    seqs: list[int]
    due: list[UUID]


def lanes_of(rows: Rows) -> list[Lane]:
    lanes: dict[int, Lane] = {}
    for lane, seq, head, event_seq, stream_id, is_due in rows:
        found = lanes.setdefault(parse_int(lane), Lane(parse_int(lane), parse_int(seq), parse_int(head), [], []))
        if event_seq is not None:
            assert stream_id is not None
            found.seqs.append(parse_int(event_seq))
            if is_due == b"t":
                found.due.append(UUID(stream_id.decode()))
    return list(lanes.values())


def _check(lane: Lane) -> None:
    """Raises `LogCorrupted` if an event is missing between the new ones, or after them up to the lane's head."""
    for expected, found in enumerate(lane.seqs, start=lane.seq + 1):
        if found != expected:
            raise LogCorrupted(lane.number, expected, f"the next event is {found}")
    if len(lane.seqs) < min(lane.head - lane.seq, LANE_BATCH_MAX):
        missing = lane.seq + len(lane.seqs) + 1
        raise LogCorrupted(lane.number, missing, f"there is no such event, and the head is {lane.head}")
