"""Folding lanes for a rebuild on the Dramatiq workers, wherever they run.

As everywhere, a message is a hint: "there are lanes to fold for this build". It may be lost or doubled, so the rebuild sends
again for as long as lanes are left. A worker folds in a process of its own: folding keeps a processor busy, and the
worker has agents and providers to listen to. Why it could not is told to the rebuild by a notification of PostgreSQL, which
is a hint too: that lanes are folded or claimed stands in their rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog
from psycopg import AsyncConnection
from redis.exceptions import RedisError

from events.sql import Statements
from hydracore.db.pool import conninfo
from hydracore.settings import Settings
from projections import generations
from projections.definition import Projection
from projections.errors import FoldFailed
from projections.folding import fold_lanes
from projections.generations import Generation, Progress
from projections.processes import describe, end_folding, ended, start_folding
from projections.rebuild import Folding
from projections.registry import all_versions
from workers.broker import HintSender

_LANES_FREE = Statements("projections", "generations.sql")["lanes_free"]

#: How long one hint keeps a worker claiming lanes; what it has claimed by then it folds, and the next hint goes on.
HELP_S = 30.0

#: How often the rebuild sends hints while lanes are left, and how many each time.
HINT_S = 2.0
HINTS = 16

#: How long the rebuild waits while no lane is folded and nobody has claimed one: hints may lie behind ten thousand others. And
#: how long it says nothing while somebody has.
IDLE_S_MAX = 300.0

#: How long one claim may take. Who takes longer hangs, and holds lanes that others could fold: nobody waits for it.
CLAIM_S_MAX = 3_600.0

#: After how many failures without a lane folded in between it gives up: others may have better luck, or none.
FAILURES_MAX = 3

_LISTEN = b"LISTEN hydracore_fold"
_NOTIFY = b"SELECT pg_notify('hydracore_fold', %s)"

#: PostgreSQL takes no longer notifications than 8,000 bytes.
_REASON_LENGTH_MAX = 1_000

_LOOK_S = 0.1

_log = structlog.get_logger(__name__)


class _Said(msgspec.Struct):
    """What a worker says of a build that it did not fold. `failed`: it tried."""

    follower: str
    reason: str
    failed: bool


class Folder:
    """Folds in one worker process; a hint that comes while it folds adds nothing."""

    def __init__(self, settings: Settings) -> None:
        self._conninfo = conninfo(settings.database_url, role=settings.database_role, application="hydracore-fold")
        self._busy = False

    async def help(self, name: str, number: int) -> None:
        """Fold lanes of the build until none is left or `HELP_S` are over. A build of other code's version is left alone."""
        if self._busy:
            return
        self._busy = True
        try:
            async with await AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                builds = await generations.unfinished(connection, name)
            build = next((one for one in builds if one.number == number), None)
            if build is None or build.state != "folding":
                return
            projection = all_versions().get(name, {}).get(build.version)
            if projection is None:
                _log.info("build_of_another_version", projection=name, version=build.version)
                await self._say(build, f"a worker has other code than version {build.version} of it", failed=False)
                return
            await self._fold(projection, build)
        finally:
            self._busy = False

    async def _fold(self, projection: Projection, build: Generation) -> None:
        try:
            process, answer = start_folding(partial(_fold_for, self._conninfo, projection, build, HELP_S))
        except OSError as error:
            await self._say(build, describe(error), failed=True)
            raise
        try:
            await ended([process], within_s=CLAIM_S_MAX)
        finally:
            reason = end_folding(process, answer)
        _log.info("folded", projection=build.name, generation=build.number, exit_code=process.exitcode)
        if reason is not None:
            await self._say(build, reason, failed=True)

    async def _say(self, build: Generation, reason: str, *, failed: bool) -> None:
        said = _Said(build.follower, reason[:_REASON_LENGTH_MAX], failed)
        async with await AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            await connection.execute(_NOTIFY, (msgspec.json.encode(said).decode(),))


def _fold_for(database: str, projection: Projection, build: Generation, seconds: float) -> int:
    return fold_lanes(database, projection, build, until_s=time.monotonic() + seconds)


def fold_distributed(settings: Settings, tell: Callable[[str], None]) -> Folding:
    """Folds on the workers of this installation; waits for as long as they fold, and says through `tell` what stands in the way."""

    async def fold(_projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        hints, waiting = HintSender(settings.redis_url), _Waiting(build, tell)
        try:
            async with await AsyncConnection.connect(settings.database_url, autocommit=True) as connection:
                await connection.execute(_LISTEN)
                hinted_s = -HINT_S
                while (now := await progress()).lanes_folded < now.lanes:
                    if time.monotonic() - hinted_s >= HINT_S:
                        await _hint(hints, build, waiting)
                        free = await connection.execute(_LANES_FREE, build.key)
                        waiting.look(now, claimed=now.lanes - now.lanes_folded - free.rowcount)
                        hinted_s = time.monotonic()
                    async for notification in connection.notifies(timeout=_LOOK_S):
                        waiting.hear(notification.payload)
        finally:
            hints.close()

    return fold


async def _hint(hints: HintSender, build: Generation, waiting: _Waiting) -> None:
    try:
        await asyncio.to_thread(hints.send_build, build.name, build.number, HINTS)
    except RedisError as error:
        # Redis is a hint: whoever folds goes on, and others hear of it once it is back.
        if waiting.redis is None:
            waiting.tell(
                f"Redis does not answer ({type(error).__name__}); workers that fold go on, others hear of nothing"
            )
        waiting.redis = type(error).__name__
    else:
        waiting.redis = None


class _Waiting:
    """How a rebuild fares that waits for workers. `redis`: the class of the error that keeps hints from them."""

    def __init__(self, build: Generation, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._build = build
        self._folded = -1
        #: When there was last something to hope for, and when that was more than a claim.
        self._hope_s = self._got_on_s = time.monotonic()
        self._spoke = False
        self._failures = 0
        self._reason: str | None = None
        self._refusals = set[str]()
        self.redis: str | None = None

    def hear(self, payload: str) -> None:
        """Take what a worker says. Raises `FoldFailed` where it is the last straw."""
        try:
            said = msgspec.json.decode(payload, type=_Said)
        except msgspec.MsgspecError:
            return  # Anybody may notify.
        if said.follower != self._build.follower:
            return
        self._reason = said.reason
        self._failures += said.failed
        if not said.failed and said.reason not in self._refusals:
            # Another worker may do it. Whether any will, whoever looks on knows sooner.
            self._refusals.add(said.reason)
            self.tell(f"{self._build.name}: {said.reason}; the lanes wait for another, {IDLE_S_MAX:.0f} s at most")
        if self._failures >= FAILURES_MAX:
            raise FoldFailed(self._build.name, said.reason)

    def look(self, now: Progress, *, claimed: int) -> None:
        """Take what stands in the rows. Raises `FoldFailed` where there was nothing to hope for, for too long."""
        clock_s = time.monotonic()
        if now.lanes_folded > self._folded:
            self._folded, self._failures = now.lanes_folded, 0
            self._got_on_s, self._spoke = clock_s, False
        elif claimed <= 0:
            if clock_s - self._hope_s >= IDLE_S_MAX:
                raise FoldFailed(self._build.name, self._why())
            # A claim's time begins with the claim.
            self._got_on_s = clock_s
            return
        else:
            self._doubt(clock_s - self._got_on_s, claimed)
        self._hope_s = clock_s

    def _doubt(self, idle_s: float, claimed: int) -> None:
        """What is to be thought of claims by which no lane was folded for so long."""
        if idle_s >= CLAIM_S_MAX:
            reason = f"for {CLAIM_S_MAX:.0f} s no lane was folded; whoever has claimed {claimed} of them hangs"
            raise FoldFailed(self._build.name, reason)
        if idle_s >= IDLE_S_MAX and not self._spoke:
            self._spoke = True
            self.tell(
                f"for {IDLE_S_MAX:.0f} s no lane was folded; somebody has claimed {claimed} of them, and is slow or hangs"
            )

    def _why(self) -> str:
        idle = f"for {IDLE_S_MAX:.0f} s no lane was folded, and nobody folds one"
        if self.redis is not None:
            return f"{idle}; Redis does not answer ({self.redis}), so that no worker hears of it"
        return f"{idle}; " + (self._reason or "does any worker run?")
