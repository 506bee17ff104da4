"""Lets long readers of the log give way to writers: they rest after each piece of work, and longer if more is being written.

`nice` slows a process down, but not its session in PostgreSQL, which does as much of the work. So long commands work in pieces of
less than a tenth of a second, and rest after each for its duration times a factor. The factor depends on how fast the lanes' heads
move: without writers it is zero, and on a busy log four. On two cores that writers could use up alone, this leaves them about four
fifths of their throughput.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf
from typing import Any, Final

from psycopg import AsyncConnection, Connection

from events.sql import Statements

_EVENTS_TOTAL: Final = Statements("events", "pacing.sql")["events_total"]

#: The longest rest as a multiple of the work before it, and the events per second at which the multiple is half of that.
FACTOR_MAX: Final = 4.0
HALF_AT_PER_S: Final = 100.0

#: The longest rest, however long a piece of work was held up.
REST_S_MAX: Final = 2.0

#: After less work than this there is no rest: reading the heads alone takes a third of a millisecond.
PIECE_S_MIN: Final = 0.02


class Pace:
    """The pace of one reader.

    `readers`: how many readers work in parallel; each rests that many times longer, so that writers see the load of one.
    `total_s_max`: the longest sum of all rests, for readers that have to keep a snapshot open while they rest.
    """

    def __init__(
        self,
        *,
        full_speed: bool = False,
        readers: int = 1,
        total_s_max: float = inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        #: The sum of all rests.
        self.rested_s = 0.0
        self._full_speed = full_speed
        self._readers = readers
        self._total_s_max = total_s_max
        self._clock = clock
        self._sleep = sleep
        self._woke_s = clock()
        #: When the heads were read last, and how many events there were then.
        self._last_sample: tuple[float, int] | None = None

    def rest(self, connection: Connection, *, factor_max: float = FACTOR_MAX) -> None:
        """Rest if there are writers. Call it after each piece of work.

        If possible, hold no snapshot meanwhile: it would keep PostgreSQL from cleaning up what writers replace. `connection` itself
        must hold none, or it would not see new events. `factor_max`: the longest rest as a multiple of the work before it.
        """
        if not self._has_worked():
            return
        row = connection.execute(_EVENTS_TOTAL).fetchone()
        rest_s = self._rest_s(row, factor_max)
        if rest_s > 0:
            self._sleep(rest_s)
        self._woke_s = self._clock()

    async def rest_async(self, connection: AsyncConnection, *, factor_max: float = FACTOR_MAX) -> None:
        """As `rest`, without blocking the event loop."""
        if not self._has_worked():
            return
        row = await (await connection.execute(_EVENTS_TOTAL)).fetchone()
        rest_s = self._rest_s(row, factor_max)
        if rest_s > 0:
            await asyncio.sleep(rest_s)
        self._woke_s = self._clock()

    def _has_worked(self) -> bool:
        return not self._full_speed and self._clock() - self._woke_s >= PIECE_S_MIN

    def _rest_s(self, row: tuple[Any, ...] | None, factor_max: float) -> float:
        """How long to rest now. Adds it to `rested_s`. `row`: how many events the log has."""
        assert row is not None, "a sum always has a row"
        now_s, written = self._clock(), int(row[0])
        before, self._last_sample = self._last_sample, (now_s, written)
        if before is None or now_s <= before[0]:
            return 0.0
        per_s = (written - before[1]) / (now_s - before[0])
        factor = factor_max * per_s / (per_s + HALF_AT_PER_S) * self._readers
        rest_s = min((now_s - self._woke_s) * factor, REST_S_MAX * self._readers, self._total_s_max - self.rested_s)
        self.rested_s += max(0.0, rest_s)
        return rest_s
