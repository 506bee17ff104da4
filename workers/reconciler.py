"""The reconciler: finds the instances with work that is due, in the read tables alone, and sends hints for them.

Because of it, Redis may be flushed at any moment: hints for an instance whose `wake_at` has passed are repeated until it advances.
The reconciler also schedules the periodic duties, which belong to no single instance.
"""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import structlog
from psycopg_pool import AsyncConnectionPool

from events.retries import run
from hydracore.settings import Settings
from workers.broker import ADVANCE, CHECK_HEALTH, POLL_ACTIONS, SWEEP, HintSender
from workers.error_boundary import error_boundary
from workers.sql import OPERATIONS
from workers.work_schedule import CLAIM_MAX, WorkSchedule

_TAKE_DUTY = OPERATIONS["take_duty"]
_RETURN_DUTY = OPERATIONS["return_duty"]
_CHANGED_HEALTH = OPERATIONS["changed_health"]
_ANY_PENDING_ACTION = OPERATIONS["any_pending_action"]

#: The time between two looks at what is due, which is the resolution of all timers.
TICK_S = 0.25

#: How often providers are asked about servers that are being created, and how often the agents' heartbeats are checked.
POLL_ACTIONS_INTERVAL_S = 2.0
HEALTH_INTERVAL_S = 1.0

#: How often per interval of a duty a relay tries to get that duty while another relay performs it, or again after a failure.
TRIES_PER_INTERVAL = 4

#: The most changes of health that one look sends hints for.
HEALTH_MAX = 500

#: Pause after a failure of Redis or PostgreSQL.
RECOVER_S = 0.5

_log = structlog.get_logger(__name__)


class Reconciler:
    def __init__(self, pool: AsyncConnectionPool, hints: HintSender, settings: Settings) -> None:
        self._pool = pool
        self._hints = hints
        self._settings = settings
        self._schedule = WorkSchedule(pool)
        #: By the name of a duty: when to try next to take it, in seconds of the monotonic clock.
        self._next_try_s: dict[str, float] = {}

    async def run(self) -> None:
        """Look for due work for ever."""
        while True:
            started = time.monotonic()
            async with error_boundary("reconciler", recover_s=RECOVER_S):
                await self._tick()
            await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - started)))

    async def _tick(self) -> None:
        due = await self._schedule.claim_due()
        await self._send_hints(ADVANCE, due)
        if len(due) == CLAIM_MAX:
            _log.warning("many_instances_due", at_least=CLAIM_MAX)
        if await self._take_duty("observe", POLL_ACTIONS_INTERVAL_S) and await run(self._pool, _ANY_PENDING_ACTION):
            await asyncio.to_thread(self._hints.send_duty, POLL_ACTIONS)
        if await self._take_duty("health", HEALTH_INTERVAL_S):
            limits = {
                "late_s": self._settings.heartbeat_late_s,
                "lost_s": self._settings.heartbeat_lost_s,
                "limit": HEALTH_MAX,
            }
            await self._send_hints(CHECK_HEALTH, [row[0] for row in await run(self._pool, _CHANGED_HEALTH, limits)])
        if await self._take_duty("sweep", self._settings.sweep_interval_s):
            await self._start_sweep()

    async def _start_sweep(self) -> None:
        """Send the hint for a sweep. If that fails, the duty is due again: unlike the intervals of the others, this one is long."""
        is_sent = False
        try:
            await self._schedule.delete_stale()
            is_sent = await asyncio.to_thread(self._hints.send_duty, SWEEP)
        finally:
            if not is_sent:
                self._next_try_s["sweep"] = time.monotonic() + self._settings.sweep_interval_s / TRIES_PER_INTERVAL
                await run(self._pool, _RETURN_DUTY, ("sweep",))
        if not is_sent:
            _log.warning("queue_full", actor=SWEEP, backlog=HintSender.BACKLOG_MAX)

    async def _send_hints(self, actor: str, instance_ids: list[UUID]) -> None:
        if instance_ids and not await asyncio.to_thread(self._hints.send, actor, instance_ids):
            _log.warning("queue_full", actor=actor, backlog=HintSender.BACKLOG_MAX)

    async def _take_duty(self, name: str, interval_s: float) -> bool:
        """Whether this process has to perform the duty now. Of several relays, one gets it per interval."""
        now_s = time.monotonic()
        if now_s < self._next_try_s.get(name, 0.0):
            return False
        taken = bool(await run(self._pool, _TAKE_DUTY, {"name": name, "interval_s": interval_s}))
        self._next_try_s[name] = now_s + (interval_s if taken else interval_s / TRIES_PER_INTERVAL)
        return taken
