"""Group commit: decisions that arrive while a flush is under way share the next one.

Under load one commit (one fsync, one round trip) carries many appends; an append that comes alone goes at once. Each
decision is still whole or not at all, with its own verdict. Flushes follow each other on one connection, so that the server
finds the next where it has done with one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import filterfalse
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import QueryCanceled
from psycopg_pool import AsyncConnectionPool

from events.batch import LANDED, Verdict, flush
from events.errors import StoreUnavailable
from events.explaining import explain
from events.patience import PATIENCE_S, patiently
from events.record import Append, InlineProjection
from events.shared import LATE_S, SharedConnection

#: How many appends one flush carries at most.
BATCH_MAX = 64

#: How many flushes one process has under way: while the database works on one, the next is encoded and sent.
FLIGHTS = 2

#: How many there are at most together with those that are late, which wait for a lock or for a database that is away.
FLIGHTS_MAX = 4

#: So few appends are not shared out among flights: what a flight costs by itself is more than that.
SHARE_MIN = 4

#: How many appends may wait for a flight. More than this is a database that does not keep up.
QUEUE_MAX = 10_000


class _InTheWay(Exception):
    """A flush waits, and others behind it. It is to wait on a connection of its own."""


_Pending = tuple[Append, "asyncio.Future[Verdict]"]


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
        #: The lanes of the batch that each has under way.
        self._air: dict[asyncio.Task[None], set[int]] = {}
        self._late: set[asyncio.Task[None]] = set()
        #: When a flush landed last, by the loop's clock.
        self._landed_s = -math.inf

    async def commit(self, append: Append) -> Verdict:
        """The log's verdict on `append`.

        Raises `StoreUnavailable`, and what `explain` does. Whoever is cancelled while waiting does not know: the append may
        still land.
        """
        if len(self._queue) + len(self._alone) >= QUEUE_MAX:
            raise StoreUnavailable("Too many appends are waiting; try again later")
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._queue.append((append, future))
        self._launch()
        try:
            return await future
        except Exception as error:
            await explain(self._pool, error, append)
            raise

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._flights:
            await asyncio.wait(self._flights)

    def _launch(self) -> None:
        if len(self._flights) - len(self._late) < FLIGHTS and len(self._flights) < FLIGHTS_MAX:
            self._flights.add(asyncio.create_task(self._fly()))

    async def _fly(self) -> None:
        flight = asyncio.current_task()
        assert flight is not None
        loop = asyncio.get_running_loop()
        try:
            while len(self._flights) - len(self._late) <= FLIGHTS and (batch := self._take()):
                self._air[flight] = {append.lane for append, _ in batch}
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
        """Have another go past `flight`, which is late."""
        self._late.add(flight)
        if self._queue or self._alone:
            self._launch()

    def _take(self) -> list[_Pending]:
        """The next batch: a fair share of what waits, and nothing that would only wait for the locks of another flight.

        At most one append per stream, because a second one was decided on a state now past.
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
            append = pending[0]
            if len(batch) < min(share, BATCH_MAX) and append.lane not in busy and append.stream_id not in streams:
                streams.add(append.stream_id)
                batch.append(pending)
            else:
                rest.append(pending)
        self._queue = rest
        return batch

    async def _settle(self, batch: list[_Pending]) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            verdicts = await self._flush([append for append, _ in batch])
        except StoreUnavailable as error:
            # Whoever waits behind them would wait as long again for the same answer: all, unless others have landed meanwhile.
            lanes = None if self._landed_s < began_s else {append.lane for append, _ in batch}
            self._refuse(batch, str(error), lanes=lanes)
        except asyncio.CancelledError:
            self._refuse(batch, "This process is stopping")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one append that caused it
            if len(batch) > 1:
                self._alone += batch
                return
            [(_, future)] = batch
            if not future.done():
                future.set_exception(error)
        else:
            for (_, future), verdict in zip(batch, verdicts, strict=True):
                if not future.done():
                    future.set_result(verdict)

    def _refuse(self, batch: list[_Pending], reason: str, *, lanes: set[int] | None = None) -> None:
        """Refuse `batch` and everything that waits, or only what waits for these `lanes`."""

        def may_stay(pending: _Pending) -> bool:
            return lanes is not None and pending[0].lane not in lanes

        waiting = [*self._alone, *self._queue]
        self._alone, self._queue = [*filter(may_stay, self._alone)], [*filter(may_stay, self._queue)]
        for pending in [*batch, *filterfalse(may_stay, waiting)]:
            future = pending[1]
            if not future.done():
                future.set_exception(StoreUnavailable(reason))

    async def _flush(self, appends: list[Append]) -> list[Verdict]:
        """One flush. Safe to repeat: what a broken connection left in the log is found again by its command ids."""

        async def together(connection: AsyncConnection) -> list[Verdict]:
            try:
                return await flush(connection, appends, self._inline)
            except QueryCanceled as error:
                raise _InTheWay from error

        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            verdicts = await patiently(self._connection, together, patience_s=PATIENCE_S)
        except _InTheWay:
            left_s = began_s + PATIENCE_S - clock()
            alone = partial(flush, appends=appends, inline=self._inline)
            verdicts = await patiently(self._pool, alone, patience_s=left_s)
        self._landed_s = clock()
        self._publish(appends, verdicts)
        return verdicts

    def _publish(self, appends: list[Append], verdicts: list[Verdict]) -> None:
        if self._published is None:
            return
        heads: dict[int, int] = {}
        for append, verdict in zip(appends, verdicts, strict=True):
            if verdict.outcome in LANDED and verdict.seq_before is not None:
                head = verdict.seq_before + len(append.events)
                heads[append.lane] = max(head, heads.get(append.lane, 0))
        if heads:
            self._published(heads)
