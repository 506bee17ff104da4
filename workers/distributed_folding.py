"""Folds the lanes of a rebuild on the Dramatiq workers, on whichever machines they run.

As everywhere, a message is a hint: "there are lanes to fold for this build". It may be lost or delivered twice, so the rebuild repeats
the hints while lanes are left. A worker folds in a child process, because folding keeps a CPU busy, and the worker's own process has to
answer agents and providers. If folding fails, the worker sends the rebuild the reason with a NOTIFY of PostgreSQL. That is a hint, too:
whether a lane is claimed or folded is recorded in its row.
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

#: How long a worker claims lanes for one hint. It still folds the lanes that it has claimed by then.
FOLD_S_PER_HINT = 30.0

#: How often the rebuild sends hints while lanes are left, and how many hints each time.
HINT_S = 2.0
HINTS = 16

#: How long the rebuild waits while no lane is folded or claimed, before it fails: its hints may be queued behind ten thousand others.
#: While lanes are claimed but none is folded, it says so after this time.
IDLE_S_MAX = 300.0

#: The longest that a claim may take. A worker that takes longer hangs, and holds lanes that others could fold: the rebuild fails.
CLAIM_S_MAX = 3_600.0

#: The rebuild fails after this number of failures without a folded lane in between. Until then, other workers may succeed.
FAILURES_MAX = 3

_LISTEN = b"LISTEN hydracore_fold"
_NOTIFY = b"SELECT pg_notify('hydracore_fold', %s)"

#: In characters, so that the notification stays below PostgreSQL's limit of 8,000 bytes.
_REASON_LENGTH_MAX = 1_000

_POLL_S = 0.1

_log = structlog.get_logger(__name__)


class _Report(msgspec.Struct):
    """A worker's reason for not folding lanes of a build. `failed`: whether it tried and failed; otherwise it declined."""

    follower: str
    reason: str
    failed: bool


class LaneFolder:
    """Folds for one worker process. Hints that come while it folds are ignored."""

    def __init__(self, settings: Settings) -> None:
        self._conninfo = conninfo(settings.database_url, role=settings.database_role, application="hydracore-fold")
        self._busy = False

    async def fold_for_hint(self, name: str, number: int) -> None:
        """Fold lanes of the build until none is left or `FOLD_S_PER_HINT` has passed. Decline a build whose version this code lacks."""
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
                await self._send_report(
                    build, f"a worker's release does not have version {build.version} of it", failed=False
                )
                return
            await self._fold(projection, build)
        finally:
            self._busy = False

    async def _fold(self, projection: Projection, build: Generation) -> None:
        try:
            process, answer = start_folding(partial(_fold_for, self._conninfo, projection, build, FOLD_S_PER_HINT))
        except OSError as error:
            await self._send_report(build, describe(error), failed=True)
            raise
        try:
            await ended([process], within_s=CLAIM_S_MAX)
        finally:
            reason = end_folding(process, answer)
        if reason is None:
            _log.info("folded", projection=build.name, generation=build.number)
            return
        # The rebuild may have ended, and its operator may be another than that of this worker.
        _log.warning("fold_failed", projection=build.name, generation=build.number, reason=reason)
        await self._send_report(build, reason, failed=True)

    async def _send_report(self, build: Generation, reason: str, *, failed: bool) -> None:
        report = _Report(build.follower, reason[:_REASON_LENGTH_MAX], failed)
        async with await AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            await connection.execute(_NOTIFY, (msgspec.json.encode(report).decode(),))


def _fold_for(database: str, projection: Projection, build: Generation, seconds: float) -> int:
    return fold_lanes(database, projection, build, until_s=time.monotonic() + seconds)


def fold_distributed(settings: Settings, tell: Callable[[str], None]) -> Folding:
    """A `Folding` that has the workers of this installation fold, and waits until they have. Calls `tell` with each obstacle.

    It raises `FoldFailed` if the workers fail or make no progress for too long.
    """

    async def fold(_projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        hints, monitor = HintSender(settings.redis_url), _Monitor(build, tell)
        try:
            async with await AsyncConnection.connect(settings.database_url, autocommit=True) as connection:
                await connection.execute(_LISTEN)
                hinted_s = -HINT_S
                while (now := await progress()).lanes_folded < now.lanes:
                    if time.monotonic() - hinted_s >= HINT_S:
                        await _hint(hints, build, monitor)
                        free = await connection.execute(_LANES_FREE, build.key)
                        monitor.take_counts(now, claimed=now.lanes - now.lanes_folded - free.rowcount)
                        hinted_s = time.monotonic()
                    async for notification in connection.notifies(timeout=_POLL_S):
                        monitor.take_report(notification.payload)
        finally:
            hints.close()

    return fold


async def _hint(hints: HintSender, build: Generation, monitor: _Monitor) -> None:
    try:
        await asyncio.to_thread(hints.send_fold_hints, build.name, build.number, HINTS)
    except RedisError as error:
        # Workers that are folding continue. The others get hints once Redis is back.
        if monitor.redis_error is None:
            monitor.tell(
                f"Redis does not answer ({type(error).__name__}); workers that are folding continue, but no others can be asked"
            )
        monitor.redis_error = type(error).__name__
    else:
        monitor.redis_error = None


class _Monitor:
    """Monitors a rebuild that waits for workers. `redis_error`: the class of the error that keeps hints from being sent, if any."""

    def __init__(self, build: Generation, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._build = build
        self._folded = -1
        #: `_active_s`: when a lane was last folded or claimed. `_progressed_s`: when a lane was last folded, or none was claimed.
        self._active_s = self._progressed_s = time.monotonic()
        self._has_warned = False
        self._failures = 0
        self._reason: str | None = None
        self._refusals = set[str]()
        self.redis_error: str | None = None

    def take_report(self, payload: str) -> None:
        """Take in a worker's report. Raises `FoldFailed` at the last failure that is allowed."""
        try:
            report = msgspec.json.decode(payload, type=_Report)
        except msgspec.MsgspecError:
            return  # Any session may send notifications.
        if report.follower != self._build.follower:
            return
        self._reason = report.reason
        self._failures += report.failed
        if not report.failed and report.reason not in self._refusals:
            # Another worker may fold the build. The operator, who is told, may know sooner whether one will.
            self._refusals.add(report.reason)
            self.tell(f"{self._build.name}: {report.reason}; waiting at most {IDLE_S_MAX:.0f} s for another worker")
        if self._failures >= FAILURES_MAX:
            raise FoldFailed(self._build.name, report.reason)

    def take_counts(self, now: Progress, *, claimed: int) -> None:
        """Take in the rows of the lanes. Raises `FoldFailed` if there was no progress for too long."""
        clock_s = time.monotonic()
        if now.lanes_folded > self._folded:
            self._folded, self._failures = now.lanes_folded, 0
            self._progressed_s, self._has_warned = clock_s, False
        elif claimed <= 0:
            if clock_s - self._active_s >= IDLE_S_MAX:
                raise FoldFailed(self._build.name, self._idle_reason())
            # The time of a later claim starts at the claim.
            self._progressed_s = clock_s
            return
        else:
            self._check_idle(clock_s - self._progressed_s, claimed)
        self._active_s = clock_s

    def _check_idle(self, idle_s: float, claimed: int) -> None:
        """Judge claims by which no lane was folded for `idle_s` seconds: tell so once after `IDLE_S_MAX`, fail after `CLAIM_S_MAX`."""
        if idle_s >= CLAIM_S_MAX:
            reason = f"no lane was folded for {CLAIM_S_MAX:.0f} s, although workers have claimed {claimed}: they hang"
            raise FoldFailed(self._build.name, reason)
        if idle_s >= IDLE_S_MAX and not self._has_warned:
            self._has_warned = True
            self.tell(
                f"no lane was folded for {IDLE_S_MAX:.0f} s, although workers have claimed {claimed}: they are slow or hang"
            )

    def _idle_reason(self) -> str:
        idle = f"no lane was folded for {IDLE_S_MAX:.0f} s, and no worker has claimed one"
        if self.redis_error is not None:
            return f"{idle}; Redis does not answer ({self.redis_error}), so no worker can be asked"
        return f"{idle}; " + (self._reason or "is a worker running?")
