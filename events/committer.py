"""Group commit: appends that arrive while a flush is under way share the next one.

Under load one commit (one fsync, one round trip) carries many appends; an append that comes alone is flushed at once. Each append is
still atomic, with its own result. Flushes are pipelined on one connection, so that the server can begin the next one without a pause.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import filterfalse
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable
from psycopg_pool import AsyncConnectionPool

from events.append_errors import raise_translated
from events.batch import IN_LOG, AppendResult, flush
from events.errors import StoreUnavailable
from events.locked_lanes import LANE_LOCKED, LockedLanes
from events.record import Append, InlineProjection
from events.retries import RETRY_S_MAX, ConnectionSource, with_retries
from events.shared_connection import LATE_AFTER_S, SharedConnection

#: The most appends per flush.
BATCH_MAX = 64

#: The flushes that one process has under way: while the database works on one, the next is encoded and sent.
FLUSHES = 2

#: The most flushes under way, including those that are late because the database is slow or away.
FLUSHES_MAX = 4

#: How long a flush waits for a lock before its lanes count as locked. Not less, because slow commits of other sessions may keep a lane
#: locked for a good part of it. Not more, because locked lanes are tried a few at a time: with four at a time (`LOCKED_TRIES_SHARE` of a
#: pool of eight), forty locked lanes are tried once each within `RETRY_S_MAX`.
LOCK_S_MAX = 1.0

#: The most locked lanes that are tried at a time, as a share of the pool's connections, so that some are left for other work.
LOCKED_TRIES_SHARE = 0.5

#: Up to this number of appends are not divided among flushes: a flush by itself costs more than that saves.
BATCH_SHARE_MIN = 4

#: The most appends that wait for a flush. If there are more, the database does not keep up.
QUEUE_MAX = 10_000


class _LockTimeout(Exception):
    """Another session keeps a lane, or a row, of a flush locked."""


class _Pending(NamedTuple):
    """An append that waits. `give_up_at_s`: until when it waits for a locked lane, by the loop's clock."""

    append: Append
    future: asyncio.Future[AppendResult]
    give_up_at_s: float

    def refuse(self, error: Exception) -> None:
        """Raise `error` in the task that waits for the append, if it still does."""
        if not self.future.done():
            self.future.set_exception(error)


class Committer:
    """Queues appends and flushes them. `on_commit`: called after each commit with the new head of each lane that moved."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        inline: Sequence[InlineProjection],
        *,
        on_commit: Callable[[dict[int, int]], None] | None = None,
    ) -> None:
        self._pool = pool
        self._connection = SharedConnection(pool)
        self._inline = inline
        self._on_commit = on_commit
        self._queue: list[_Pending] = []
        #: Appends of a batch that failed as a whole: each is flushed alone, so that only the one that caused the failure fails.
        self._isolated: list[_Pending] = []
        self._flushers: set[asyncio.Task[None]] = set()
        #: By flusher: the lanes of the batch that it has under way.
        self._lanes_in_flight: dict[asyncio.Task[None], set[int]] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._locked = LockedLanes[_Pending]()
        self._locked_tries: set[asyncio.Task[None]] = set()
        self._locked_tries_max = max(1, int(pool.max_size * LOCKED_TRIES_SHARE))
        #: When a flush last succeeded, by the loop's clock.
        self._last_success_s = -math.inf

    async def commit(self, append: Append) -> AppendResult:
        """Append, and return the log's answer.

        Raises `StoreUnavailable`, also if another session keeps the lane locked for `RETRY_S_MAX`, and the errors of
        `raise_translated`. If the caller is cancelled, the append may still be written.
        """
        if len(self._queue) + len(self._isolated) + len(self._locked) >= QUEUE_MAX:
            raise StoreUnavailable("Too many appends are waiting; try again later")
        if self._locked.is_full(append.lane):
            raise StoreUnavailable(LANE_LOCKED)
        loop = asyncio.get_running_loop()
        pending = _Pending(append, loop.create_future(), loop.time() + RETRY_S_MAX)
        if append.lane in self._locked:
            self._locked.enqueue(pending)
            self._start_locked_try()
        else:
            self._queue.append(pending)
            self._start_flusher()
        try:
            return await pending.future
        except Exception as error:
            await raise_translated(self._pool, error, append)
            raise

    async def close(self) -> None:
        """Wait for the flushes that are under way."""
        while under_way := self._flushers | self._locked_tries:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    def _start_flusher(self) -> None:
        if len(self._flushers) - len(self._late) < FLUSHES and len(self._flushers) < FLUSHES_MAX:
            self._flushers.add(asyncio.create_task(self._flush_queue()))

    async def _flush_queue(self) -> None:
        flusher = asyncio.current_task()
        assert flusher is not None
        loop = asyncio.get_running_loop()
        try:
            # If another flusher was started in this one's place while it was late, there is one too many now.
            while len(self._flushers) - len(self._late) <= FLUSHES and (batch := self._next_batch()):
                self._lanes_in_flight[flusher] = _lanes(batch)
                late_timer = loop.call_later(LATE_AFTER_S, self._mark_late, flusher)
                try:
                    await self._flush_batch(batch)
                finally:
                    late_timer.cancel()
                    del self._lanes_in_flight[flusher]
                    self._late.discard(flusher)
                # Let the tasks that waited for this flush run: they may have appends for the next one.
                await asyncio.sleep(0)
        finally:
            # Without an await since the queue was found empty, so that an append that comes now starts a new flusher.
            self._flushers.discard(flusher)

    def _mark_late(self, flusher: asyncio.Task[None]) -> None:
        """Count `flusher` as late, and start another one if appends wait."""
        self._late.add(flusher)
        if self._queue or self._isolated:
            self._start_flusher()

    def _next_batch(self) -> list[_Pending]:
        """The next batch: a fair share of the queue, without appends that would only wait for the locks of another flush.

        At most one append per stream, because the first one makes the second outdated.
        """
        if self._isolated:
            return [self._isolated.pop()]
        busy = {lane for lanes in self._lanes_in_flight.values() for lane in lanes}
        # At least one: the flusher that asks has no batch under way. What is left of the queue is for the others.
        free_flushers = FLUSHES - (len(self._lanes_in_flight) - len(self._late))
        share = max(BATCH_SHARE_MIN, math.ceil(len(self._queue) / free_flushers))
        batch: list[_Pending] = []
        rest: list[_Pending] = []
        streams: set[UUID] = set()
        for pending in self._queue:
            append = pending.append
            if len(batch) < min(share, BATCH_MAX) and append.lane not in busy and append.stream_id not in streams:
                streams.add(append.stream_id)
                batch.append(pending)
            else:
                rest.append(pending)
        self._queue = rest
        return batch

    def _start_locked_try(self) -> None:
        """Start one more task that tries locked lanes, unless `_locked_tries_max` are running."""
        if len(self._locked_tries) < self._locked_tries_max:
            self._locked_tries.add(asyncio.create_task(self._try_locked_lanes()))

    async def _try_locked_lanes(self) -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            while batch := self._locked.next_batch(count_max=BATCH_MAX):
                # The next lane is tried at the same time.
                self._start_locked_try()
                try:
                    await self._flush_batch(batch, own_connection=True)
                finally:
                    self._locked.end_try(batch[0].append.lane)
        finally:
            self._locked_tries.discard(this)

    async def _flush_batch(self, batch: list[_Pending], *, own_connection: bool = False) -> None:
        """Flush `batch`, and give each of its appends the result or the error. `own_connection`: not on the shared connection."""
        began_s = asyncio.get_running_loop().time()
        try:
            results = await self._flush([pending.append for pending in batch], own_connection=own_connection)
        except _LockTimeout:
            self._queue_as_locked(batch)
        except StoreUnavailable as error:
            # The appends in the queue would wait as long for the same answer, so they are refused, too: all of them or, if another
            # flush has succeeded meanwhile, those to the same lanes.
            self._refuse(batch, str(error), lanes=None if self._last_success_s < began_s else _lanes(batch))
        except asyncio.CancelledError:
            self._refuse(batch, "This process is stopping")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one append that caused it
            if len(batch) > 1:
                # It was one transaction, so nothing of it was written.
                self._isolated += batch
                self._start_flusher()
            else:
                # It did not fail because of a lock, so its lane no longer counts as locked.
                batch[0].refuse(error)
                self._requeue_released(batch)
        else:
            for (_, future, _), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
            self._requeue_released(batch)

    def _queue_as_locked(self, batch: list[_Pending]) -> None:
        """Move all appends to the lanes of `batch` to the locked lanes, and refuse those that have waited long enough."""
        lanes = _lanes(batch)
        behind = [pending for pending in [*self._isolated, *self._queue] if pending.append.lane in lanes]
        self._isolated = [pending for pending in self._isolated if pending.append.lane not in lanes]
        self._queue = [pending for pending in self._queue if pending.append.lane not in lanes]
        self._locked.add_blocked([*batch, *behind])
        now_s = asyncio.get_running_loop().time()
        for pending in self._locked.remove_if(lambda pending: pending.give_up_at_s <= now_s):
            pending.refuse(StoreUnavailable(LANE_LOCKED))
        self._start_locked_try()

    def _requeue_released(self, batch: list[_Pending]) -> None:
        """Count the lanes of `batch` as locked no longer. The appends that waited for them go to the front of the queue."""
        if waiting := self._locked.release(_lanes(batch)):
            self._queue[:0] = waiting
            self._start_flusher()

    def _refuse(self, batch: list[_Pending], reason: str, *, lanes: set[int] | None = None) -> None:
        """Refuse `batch` and all appends that wait, or only those to `lanes`."""

        def may_stay(pending: _Pending) -> bool:
            return lanes is not None and pending.append.lane not in lanes

        waiting = [*self._isolated, *self._queue]
        self._isolated, self._queue = [*filter(may_stay, self._isolated)], [*filter(may_stay, self._queue)]
        locked = self._locked.remove_if(lambda pending: not may_stay(pending))
        for pending in [*batch, *filterfalse(may_stay, waiting), *locked]:
            pending.refuse(StoreUnavailable(reason))

    async def _flush(self, appends: list[Append], *, own_connection: bool) -> list[AppendResult]:
        began_s = asyncio.get_running_loop().time()
        if not own_connection:
            # Other flushes wait behind this one on the shared connection, so it gives up a lock earlier there.
            with suppress(_LockTimeout):
                return await self._flush_on(self._connection, appends, lock_s_max=LATE_AFTER_S, retry_s_max=RETRY_S_MAX)
        left_s = RETRY_S_MAX - (asyncio.get_running_loop().time() - began_s)
        return await self._flush_on(self._pool, appends, lock_s_max=LOCK_S_MAX, retry_s_max=left_s)

    async def _flush_on(
        self, source: ConnectionSource, appends: list[Append], *, lock_s_max: float, retry_s_max: float
    ) -> list[AppendResult]:
        """Flush once. This is safe to repeat: appends that a broken connection left in the log are found by their command ids."""

        async def work(connection: AsyncConnection) -> list[AppendResult]:
            try:
                return await flush(connection, appends, self._inline, lock_s_max=lock_s_max)
            except LockNotAvailable as error:
                # Translated here, because `with_retries` would repeat it for `retry_s_max`.
                raise _LockTimeout from error

        results = await with_retries(source, work, retry_s_max=retry_s_max)
        self._last_success_s = asyncio.get_running_loop().time()
        self._publish(appends, results)
        return results

    def _publish(self, appends: list[Append], results: list[AppendResult]) -> None:
        """Call `on_commit` with the lanes that moved."""
        if self._on_commit is None:
            return
        heads: dict[int, int] = {}
        for append, result in zip(appends, results, strict=True):
            if result.outcome in IN_LOG and result.seq_before is not None:
                head = result.seq_before + len(append.events)
                heads[append.lane] = max(head, heads.get(append.lane, 0))
        if heads:
            self._on_commit(heads)


def _lanes(batch: list[_Pending]) -> set[int]:
    return {pending.append.lane for pending in batch}
