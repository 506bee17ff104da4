"""Group commit: decisions that arrive while a flush is under way share the next one.

Under load one commit (one fsync, one round trip) carries many appends; an append that comes alone goes at once. Each
decision is still whole or not at all, with its own verdict. Flushes follow each other on one connection, so that the server
finds the next where it has done with one.
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

from events.batch import LANDED, Verdict, flush
from events.errors import StoreUnavailable
from events.explaining import explain
from events.held import REFUSAL, HeldLanes
from events.patience import PATIENCE_S, patiently
from events.record import Append, InlineProjection
from events.shared import LATE_S, SharedConnection

#: How many appends one flush carries at most.
BATCH_MAX = 64

#: How many flushes one process has under way: while the database works on one, the next is encoded and sent.
FLIGHTS = 2

#: How many there are at most together with those that are late, which wait for a database that is slow or away.
FLIGHTS_MAX = 4

#: How long a flush waits for a lock before its lanes are taken for held. Not less, because commits of others that are merely slow may keep
#: a lane locked for a good part of it. Not more, because held lanes are tried a few at a time: four at a time (`TRIES_SHARE` of a pool of
#: eight), forty held lanes have had a try each within `PATIENCE_S`.
LOCK_S_MAX = 1.0

#: How many held lanes are tried at a time at most: this share of the pool's connections, so that others find one.
TRIES_SHARE = 0.5

#: So few appends are not shared out among flights: what a flight costs by itself is more than that.
SHARE_MIN = 4

#: How many appends may wait for a flight. More than this is a database that does not keep up.
QUEUE_MAX = 10_000


class _InTheWay(Exception):
    """A flush waits for a lock, and others may be behind it. It is to be made on a connection of its own."""


class _Locked(Exception):
    """Somebody keeps locked what a flush is to write to."""


class _Pending(NamedTuple):
    """An append that waits. Where its lane is held, `give_up_at_s` is when it has waited long enough, by the loop's clock."""

    append: Append
    future: asyncio.Future[Verdict]
    give_up_at_s: float

    def refuse(self, error: Exception) -> None:
        """Raise `error` where the append is waited for, if it still is."""
        if not self.future.done():
            self.future.set_exception(error)


class Committer:
    """Queues appends and flushes them. `published(lanes)` is called after each commit with the lanes that moved."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        inline: Sequence[InlineProjection],
        *,
        published: Callable[[dict[int, int]], None] | None = None,
    ) -> None:
        self._pool = pool
        self._connection = SharedConnection(pool)
        self._inline = inline
        self._published = published
        self._queue: list[_Pending] = []
        #: Appends of a batch that failed as a whole: each flies alone, so that only the culprit fails.
        self._alone: list[_Pending] = []
        self._flights: set[asyncio.Task[None]] = set()
        #: By flight: the lanes of the batch that it has under way.
        self._air: dict[asyncio.Task[None], set[int]] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._held = HeldLanes[_Pending]()
        self._tries: set[asyncio.Task[None]] = set()
        self._tries_max = max(1, int(pool.max_size * TRIES_SHARE))
        #: When a flush landed last, by the loop's clock.
        self._landed_s = -math.inf

    async def commit(self, append: Append) -> Verdict:
        """The log's verdict on `append`.

        Raises `StoreUnavailable`, also where somebody keeps its lane locked for `PATIENCE_S`, and what `explain` does. Whoever is
        cancelled while waiting does not know: the append may still land.
        """
        if len(self._queue) + len(self._alone) + len(self._held) >= QUEUE_MAX:
            raise StoreUnavailable("Too many appends are waiting; try again later")
        if self._held.is_full(append.lane):
            raise StoreUnavailable(REFUSAL)
        loop = asyncio.get_running_loop()
        pending = _Pending(append, loop.create_future(), loop.time() + PATIENCE_S)
        if append.lane in self._held:
            self._held.queue(pending)
            self._try_held()
        else:
            self._queue.append(pending)
            self._launch()
        try:
            return await pending.future
        except Exception as error:
            await explain(self._pool, error, append)
            raise

    async def close(self) -> None:
        """Wait for what is under way."""
        while under_way := self._flights | self._tries:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    def _launch(self) -> None:
        if len(self._flights) - len(self._late) < FLIGHTS and len(self._flights) < FLIGHTS_MAX:
            self._flights.add(asyncio.create_task(self._fly()))

    async def _fly(self) -> None:
        flight = asyncio.current_task()
        assert flight is not None
        loop = asyncio.get_running_loop()
        try:
            while len(self._flights) - len(self._late) <= FLIGHTS and (batch := self._take()):
                self._air[flight] = _lanes(batch)
                overdue = loop.call_later(LATE_S, self._let_pass, flight)
                try:
                    await self._settle(batch)
                finally:
                    overdue.cancel()
                    del self._air[flight]
                    self._late.discard(flight)
                # One turn of the loop: whoever was waiting for this flight may have something for the next.
                await asyncio.sleep(0)
        finally:
            # In the same step as the look at the empty queue: an append that comes now starts a flight of its own.
            self._flights.discard(flight)

    def _let_pass(self, flight: asyncio.Task[None]) -> None:
        """Count `flight` as late, and start another one if something waits."""
        self._late.add(flight)
        if self._queue or self._alone:
            self._launch()

    def _take(self) -> list[_Pending]:
        """The next batch: a fair share of what waits, and nothing that would only wait for the locks of another flight.

        At most one append per stream, because the first one makes the second outdated.
        """
        if self._alone:
            return [self._alone.pop()]
        busy = {lane for lanes in self._air.values() for lane in lanes}
        places = FLIGHTS - (len(self._air) - len(self._late))
        share = max(SHARE_MIN, math.ceil(len(self._queue) / places))
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

    def _try_held(self) -> None:
        """Start one more task that tries held lanes, unless there are as many as may be."""
        if len(self._tries) < self._tries_max:
            self._tries.add(asyncio.create_task(self._try()))

    async def _try(self) -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            while batch := self._held.take(count_max=BATCH_MAX):
                # The next lane is tried beside this one.
                self._try_held()
                try:
                    await self._settle(batch, apart=True)
                finally:
                    self._held.end_try(batch[0].append.lane)
        finally:
            self._tries.discard(this)

    async def _settle(self, batch: list[_Pending], *, apart: bool = False) -> None:
        """Flush `batch`, and give each of its appends the verdict or the error. `apart`: on a connection of its own."""
        began_s = asyncio.get_running_loop().time()
        try:
            verdicts = await self._flush([pending.append for pending in batch], apart=apart)
        except _Locked:
            self._set_aside(batch)
        except StoreUnavailable as error:
            # What waits behind them would wait as long for the same answer, so it is refused as well: all of it or, where another
            # flush has landed meanwhile, what is for the same lanes.
            self._refuse(batch, str(error), lanes=None if self._landed_s < began_s else _lanes(batch))
        except asyncio.CancelledError:
            self._refuse(batch, "This process is stopping")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one append that caused it
            if len(batch) > 1:
                self._alone += batch
                self._launch()
            else:
                # It did not fail for a lock, so its lane is not held, as far as we know.
                batch[0].refuse(error)
                self._let_in(batch)
        else:
            for (_, future, _), verdict in zip(batch, verdicts, strict=True):
                if not future.done():
                    future.set_result(verdict)
            self._let_in(batch)

    def _set_aside(self, batch: list[_Pending]) -> None:
        """Have all appends to the lanes of `batch` wait apart, and refuse those that have waited long enough."""
        lanes = _lanes(batch)
        behind = [pending for pending in [*self._alone, *self._queue] if pending.append.lane in lanes]
        self._alone = [pending for pending in self._alone if pending.append.lane not in lanes]
        self._queue = [pending for pending in self._queue if pending.append.lane not in lanes]
        self._held.put([*batch, *behind])
        now_s = asyncio.get_running_loop().time()
        for pending in self._held.take_out(lambda pending: pending.give_up_at_s <= now_s):
            pending.refuse(StoreUnavailable(REFUSAL))
        self._try_held()

    def _let_in(self, batch: list[_Pending]) -> None:
        """The lanes of `batch` are held no more: what waited for them goes before all else."""
        if waiting := self._held.let_go(_lanes(batch)):
            self._queue[:0] = waiting
            self._launch()

    def _refuse(self, batch: list[_Pending], reason: str, *, lanes: set[int] | None = None) -> None:
        """Refuse `batch` and everything that waits, or only what waits for these `lanes`."""

        def may_stay(pending: _Pending) -> bool:
            return lanes is not None and pending.append.lane not in lanes

        waiting = [*self._alone, *self._queue]
        self._alone, self._queue = [*filter(may_stay, self._alone)], [*filter(may_stay, self._queue)]
        held = self._held.take_out(lambda pending: not may_stay(pending))
        for pending in [*batch, *filterfalse(may_stay, waiting), *held]:
            pending.refuse(StoreUnavailable(reason))

    async def _flush(self, appends: list[Append], *, apart: bool) -> list[Verdict]:
        """One flush. Safe to repeat: what a broken connection left in the log is found again by its command ids."""

        async def alone(connection: AsyncConnection) -> list[Verdict]:
            try:
                return await flush(connection, appends, self._inline, lock_s_max=LOCK_S_MAX)
            except LockNotAvailable as error:
                raise _Locked from error

        async def together(connection: AsyncConnection) -> list[Verdict]:
            try:
                return await flush(connection, appends, self._inline, lock_s_max=LATE_S)
            except LockNotAvailable as error:
                raise _InTheWay from error

        clock = asyncio.get_running_loop().time
        left_s = PATIENCE_S
        if not apart:
            began_s = clock()
            with suppress(_InTheWay):
                return self._landed(appends, await patiently(self._connection, together, patience_s=left_s))
            left_s -= clock() - began_s
        return self._landed(appends, await patiently(self._pool, alone, patience_s=left_s))

    def _landed(self, appends: list[Append], verdicts: list[Verdict]) -> list[Verdict]:
        self._landed_s = asyncio.get_running_loop().time()
        if self._published is None:
            return verdicts
        heads: dict[int, int] = {}
        for append, verdict in zip(appends, verdicts, strict=True):
            if verdict.outcome in LANDED and verdict.seq_before is not None:
                head = verdict.seq_before + len(append.events)
                heads[append.lane] = max(head, heads.get(append.lane, 0))
        if heads:
            self._published(heads)
        return verdicts


def _lanes(batch: list[_Pending]) -> set[int]:
    return {pending.append.lane for pending in batch}
