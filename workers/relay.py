# redis-py types its pub/sub in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""The relay: follows the log and hints at the instances that something happened to.

Any number of relays may run: each leases the lanes that have moved with `FOR UPDATE SKIP LOCKED` and moves their
checkpoints in the same transaction, after the hints are out. A crash in between means a second hint, never none.

A lane with a hole is parked, with an alarm in the log and in its checkpoint, and never passed over; the other lanes go on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.exceptions import RedisError

from events.errors import LogCorrupted, StoreUnavailable
from events.patience import patiently
from hydracore.wake import CHANNEL
from workers.broker import ADVANCE, Bell
from workers.sql import OPERATIONS, run

_ENTER_LANES = OPERATIONS["enter_lanes"]
_LEASE_LANES = OPERATIONS["lease_lanes"]
_NEW_EVENTS = OPERATIONS["new_events"]
_MOVE_CHECKPOINT = OPERATIONS["move_checkpoint"]
_PARK_LANE = OPERATIONS["park_lane"]

FOLLOWER = "relay"

#: How many events of one lane are taken at a time.
LANE_BATCH_MAX = 1_000

#: How long a lost wake-up can go unnoticed.
POLL_S = 0.25

#: Pause after a failure of Redis or PostgreSQL.
RECOVER_S = 0.5

#: How long a lane that contradicts itself rests before it is looked at, and complained about, again.
PARKED_S = 30.0

_log = structlog.get_logger(__name__)


class Relay:
    def __init__(self, pool: AsyncConnectionPool, bell: Bell, redis: Redis) -> None:
        self._pool = pool
        self._bell = bell
        self._redis = redis
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Follow for ever."""
        await run(self._pool, _ENTER_LANES, (FOLLOWER,))
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                self._woken.clear()
                try:
                    while await patiently(self._pool, self._follow):
                        pass
                except (RedisError, StoreUnavailable) as error:
                    _log.warning("relay_waits", error=type(error).__name__)
                    await asyncio.sleep(RECOVER_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), POLL_S)
        finally:
            listening.cancel()

    async def _listen(self) -> None:
        """Turn messages into wake-ups; while Redis is away, polling does."""
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(CHANNEL)
                    self._woken.set()
                    async for _ in subscription.listen():
                        self._woken.set()
            except (RedisError, OSError):
                await asyncio.sleep(RECOVER_S)

    async def _follow(self, connection: AsyncConnection) -> bool:
        """Hint at what is new in every lane that nobody else has leased. True where there may be more."""
        async with connection.transaction():
            lanes = await (await connection.execute(_LEASE_LANES, (FOLLOWER,), prepare=True)).fetchall()
            due: dict[UUID, None] = {}
            more = False
            for lane, seq, head in lanes:
                try:
                    count, owed = await _new_events(connection, lane, after=seq, head=head)
                except LogCorrupted as error:
                    _log.critical("log_corrupted", lane=lane, after=seq, error=str(error))
                    parked = {"follower": FOLLOWER, "lane": lane, "pause_s": PARKED_S, "error": str(error)}
                    await connection.execute(_PARK_LANE, parked, prepare=True)
                    continue
                more = more or count == LANE_BATCH_MAX
                due.update(dict.fromkeys(owed))
                moved = {"follower": FOLLOWER, "lane": lane, "before": seq, "seq": seq + count}
                await connection.execute(_MOVE_CHECKPOINT, moved, prepare=True)
            if due:
                # A full queue is no reason to wait: the reconciler knows what is owed.
                await asyncio.to_thread(self._bell.ring, ADVANCE, list(due))
        return more


async def _new_events(connection: AsyncConnection, lane: int, *, after: int, head: int) -> tuple[int, list[UUID]]:
    """How many events the next batch has, and the instances among them that work is owed to.

    Raises `LogCorrupted` where a number is missing, in between or before the head that was read first.
    """
    parameters = {"lane": lane, "seq": after, "limit": LANE_BATCH_MAX}
    events = await (await connection.execute(_NEW_EVENTS, parameters, prepare=True)).fetchall()
    for expected, (found, _, _) in enumerate(events, start=after + 1):
        if found != expected:
            raise LogCorrupted(lane, expected, f"the next event is {found}")
    if len(events) < min(head - after, LANE_BATCH_MAX):
        raise LogCorrupted(lane, after + len(events) + 1, f"there is no such event, and the head is {head}")
    return len(events), [stream_id for _, stream_id, owed in events if owed]
