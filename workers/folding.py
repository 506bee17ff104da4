"""Folding lanes for a rebuild on the Dramatiq workers, wherever they run.

As everywhere, a message is a hint: "there are lanes to fold for this build". It may be lost or doubled, so the rebuild rings
again for as long as lanes are left. A worker folds in a process of its own: folding keeps a processor busy, and the
worker has agents and providers to listen to.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable

import psycopg
import structlog

from hydracore.db.pool import conninfo
from hydracore.settings import Settings
from projections import generations
from projections.definition import Projection
from projections.folding import fold_lanes
from projections.generations import Generation, Progress
from projections.processes import NICE
from projections.rebuild import Folding
from projections.registry import all_versions
from workers.broker import Bell

#: How long one hint keeps a worker folding; the next hint goes on.
HELP_S = 30.0

#: How often the rebuild rings while lanes are left, and how many hints it sends each time.
RING_S = 2.0
HINTS = 16

_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 0.1

_log = structlog.get_logger(__name__)


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
            async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                build = await generations.newest_in(connection, name, "folding")
            if build is None or build.number != number:
                return
            projection = all_versions().get(name, {}).get(build.version)
            if projection is None:
                _log.info("build_of_another_version", projection=name, version=build.version)
                return
            await self._fold(projection, build)
        finally:
            self._busy = False

    async def _fold(self, projection: Projection, build: Generation) -> None:
        args = (self._conninfo, projection, build, HELP_S)
        process = _SPAWN.Process(target=_fold_for, args=args, name="hydracore-fold")
        process.start()
        try:
            await asyncio.to_thread(process.join)
        finally:
            # Cancelled: without its process the thread that waits for it ends too.
            process.terminate()
        _log.info("folded", projection=build.name, generation=build.number, exit_code=process.exitcode)


def _fold_for(database: str, projection: Projection, build: Generation, seconds: float) -> None:
    os.nice(NICE)
    fold_lanes(database, projection, build, until_s=time.monotonic() + seconds)


def fold_distributed(settings: Settings) -> Folding:
    """Folds on the workers of this installation; waits for as long as it takes them."""

    async def fold(_projection: Projection, build: Generation, progress: Callable[[], Awaitable[Progress]]) -> None:
        bell = Bell(settings.redis_url)
        try:
            rung_s = -RING_S
            while (now := await progress()).lanes_folded < now.lanes:
                if time.monotonic() - rung_s >= RING_S:
                    await asyncio.to_thread(bell.ring_build, build.name, build.number, HINTS)
                    rung_s = time.monotonic()
                await asyncio.sleep(_LOOK_S)
        finally:
            bell.close()

    return fold
