"""Giving way to writers: who reads much of the log rests in between, the longer the more is being written.

`nice` holds back a process, and not its session in PostgreSQL, which does as much of the work. So long commands work in pieces of
less than a tenth of a second and rest behind each, for as long as it took times a factor. The factor follows the lanes' heads:
nothing written, no rest; a busy log, four times as long as the work. Two processors that writers would use up alone are then
shared in a way that leaves these some four fifths of their pace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf
from typing import Any, Final

from psycopg import AsyncConnection, Connection

from events.sql import Statements

_WRITTEN: Final = Statements("events", "pacing.sql")["written"]

#: How many times as long as the work the rest becomes at most, and how many events a second make it half as long.
FACTOR_MAX: Final = 4.0
HALF_AT_PER_S: Final = 100.0

#: No rest is longer, whatever a piece of work was held up by.
REST_S_MAX: Final = 2.0

#: Less work than this is done on with: a look at the heads takes a third of a millisecond.
PIECE_S_MIN: Final = 0.02


class Pace:
    """One reader's. `readers`: how many there are of it, which rest so much longer that it makes no difference.

    `total_s_max`: how long all rests are together. It is for those who cannot but rest with a snapshot open.
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
        #: How long all rests were together.
        self.rested_s = 0.0
        self._full_speed = full_speed
        self._readers = readers
        self._total_s_max = total_s_max
        self._clock = clock
        self._sleep = sleep
        self._woke_s = clock()
        #: When the last look was, and how many events there were.
        self._looked: tuple[float, int] | None = None

    def rest(self, connection: Connection, *, factor_max: float = FACTOR_MAX) -> None:
        """Rest, if somebody writes. To be called behind each piece of work, where no snapshot is held if that can be: what is
        written meanwhile could not be cleaned up before its end. `connection` itself must hold none, to see what is new. `factor_max`: how
        many times as long as the work the rest is at most.
        """
        if not self._has_worked():
            return
        row = connection.execute(_WRITTEN).fetchone()
        rest_s = self._due_s(row, factor_max)
        if rest_s > 0:
            self._sleep(rest_s)
        self._woke_s = self._clock()

    async def rest_async(self, connection: AsyncConnection, *, factor_max: float = FACTOR_MAX) -> None:
        """The same, for whoever must not block."""
        if not self._has_worked():
            return
        row = await (await connection.execute(_WRITTEN)).fetchone()
        rest_s = self._due_s(row, factor_max)
        if rest_s > 0:
            await asyncio.sleep(rest_s)
        self._woke_s = self._clock()

    def _has_worked(self) -> bool:
        return not self._full_speed and self._clock() - self._woke_s >= PIECE_S_MIN

    def _due_s(self, row: tuple[Any, ...] | None, factor_max: float) -> float:
        """How long to rest now, which counts as rested. `row`: how many events there are."""
        assert row is not None, "a sum is a row"
        now_s, written = self._clock(), int(row[0])
        before, self._looked = self._looked, (now_s, written)
        if before is None or now_s <= before[0]:
            return 0.0
        per_s = (written - before[1]) / (now_s - before[0])
        factor = factor_max * per_s / (per_s + HALF_AT_PER_S) * self._readers
        rest_s = min((now_s - self._woke_s) * factor, REST_S_MAX * self._readers, self._total_s_max - self.rested_s)
        self.rested_s += max(0.0, rest_s)
        return rest_s
