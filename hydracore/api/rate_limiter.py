"""Rate limits: counted in each process, summed up over all processes in Redis. Only Redis's sums lead to a refusal.

A request is admitted from this process's memory, in two microseconds. A moment later the process sends the counts of
all callers to Redis in one round trip, and gets the sums over all processes. So processes agree within `SYNC_INTERVAL_S` and a
round trip. If a process's own count reaches the limit, it asks Redis at once before it refuses. Without Redis, nothing
is refused (docs/adr/0008-rate-limits-settle-later.md).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextvars import Context
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
from redis.asyncio import Redis

from hydracore.api.agent_gate import CallingAgent
from hydracore.api.errors import TooManyRequests
from hydracore.api.operations import Authenticate
from hydracore.api.raw_request import RawHeaders
from hydracore.auth import Principal
from hydracore.redis_errors import REDIS_ERRORS

WINDOW_S: Final = 60

#: The most seconds before an admitted request is reported. Processes disagree for that long and a round trip.
SYNC_INTERVAL_S: Final = 0.25

#: How long Redis may take before it counts as down, and how soon it is tried again, in seconds.
TIMEOUT_S: Final = 0.25
RETRY_S: Final = 1.0

#: The most counters per round trip. Redis runs no other command while it adds to them.
BATCH_MAX: Final = 1_000

#: The limit of an agent, as a multiple of a user's: after an outage it sends all at once what it has kept.
AGENT_FACTOR: Final = 10

#: The most round trips for one request, after which it is admitted. The first may have begun before, without the latest
#: counts.
SYNCS_MAX: Final = 3

KEY_PREFIX: Final = "hydracore:rate:"

_SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text()

_log = structlog.get_logger(__name__)


class _Counter:
    """A caller's requests in the current window. `ends_at`: by this process's clock; infinite until Redis answers."""

    __slots__ = ("ends_at", "sending", "synced_total", "unsent")

    def __init__(self) -> None:
        #: The sum over all processes, as of Redis's last answer.
        self.synced_total = 0
        #: Admitted here: in the running round trip (`sending`), and since (`unsent`).
        self.sending = 0
        self.unsent = 0
        self.ends_at = math.inf

    @property
    def total(self) -> int:
        return self.synced_total + self.sending + self.unsent


class RateLimiter:
    """One per process. `clock`: monotonic seconds."""

    def __init__(self, redis: Redis, *, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert per_minute > 0, "without a limit there is nothing to count"
        self._per_minute = per_minute
        self._clock = clock
        self._script = redis.register_script(_SCRIPT)
        self._counters: dict[str, _Counter] = {}
        #: The counters for the next round trip.
        self._unsynced: dict[str, _Counter] = {}
        self._is_down = False
        self._timer: asyncio.TimerHandle | None = None
        self._sync_task: asyncio.Task[None] | None = None

    def limit(self, authenticate: Authenticate) -> Authenticate:
        """`authenticate`, followed by the rate limit. Also raises `TooManyRequests`."""

        async def admitted(headers: RawHeaders) -> object:
            who = await authenticate(headers)
            await self.admit(who)
            return who

        return admitted

    async def admit(self, who: object) -> None:
        """Count one request. Raises `TooManyRequests`."""
        key, limit = self._key_and_limit(who)
        for _ in range(SYNCS_MAX):
            counter = self._counter(key)
            if self._is_down or counter.total < limit:
                counter.unsent += 1
                self._schedule_sync(key, counter)
                return
            if counter.synced_total >= limit:
                # Redis is asked again all the same: it may be down by then, or have lost its data.
                self._schedule_sync(key, counter)
                raise TooManyRequests(max(1, math.ceil(counter.ends_at - self._clock())))
            await asyncio.shield(self._sync_now())

    async def aclose(self) -> None:
        """Stop. Counts that were not sent are lost."""
        self._unsynced.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._sync_task is not None:
            await self._sync_task

    def _key_and_limit(self, who: object) -> tuple[str, int]:
        """The key of the caller's counter, and its limit. An API key has one counter, whomever it acts for."""
        if isinstance(who, CallingAgent):
            return f"agent/{who.instance_id}", self._per_minute * AGENT_FACTOR
        assert isinstance(who, Principal), who
        if who.key_id is not None:
            return f"api_key/{who.key_id}", self._per_minute
        # Neither id can contain a slash.
        return f"user/{who.tenant_id}/{who.user_id}", self._per_minute

    def _counter(self, key: str) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter()
        elif self._clock() >= counter.ends_at:
            # The next window begins with Redis's next answer. The counter moves to the end, to keep the order of
            # windows.
            counter.synced_total, counter.ends_at = 0, math.inf
            self._counters[key] = self._counters.pop(key)
        return counter

    def _schedule_sync(self, key: str, counter: _Counter) -> None:
        self._unsynced[key] = counter
        if self._timer is None and self._sync_task is None:
            delay_s = RETRY_S if self._is_down else SYNC_INTERVAL_S
            # With a new context, so that its log lines do not have the id of the request that started it.
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._sync_now, context=Context())

    def _sync_now(self) -> asyncio.Task[None]:
        """The running round trip, or a new one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sync_task is None:
            self._sync_task = asyncio.get_running_loop().create_task(self._sync(), context=Context())
        return self._sync_task

    async def _sync(self) -> None:
        batch = dict(islice(self._unsynced.items(), BATCH_MAX))
        for key, counter in batch.items():
            del self._unsynced[key]
            counter.sending, counter.unsent = counter.unsent, 0
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer: list[int] = await self._script(
                    keys=[KEY_PREFIX + key for key in batch],
                    args=[WINDOW_S * 1000, *(counter.sending for counter in batch.values())],
                )
        except REDIS_ERRORS as error:
            self._went_down(error)
        else:
            self._apply_answer(batch, answer)
        finally:
            self._sync_task = None
            for key, counter in islice(self._unsynced.items(), 1):
                self._schedule_sync(key, counter)

    def _went_down(self, error: Exception) -> None:
        """Redis does not answer: forget all counts, and refuse nothing until it answers again."""
        if not self._is_down:
            _log.warning("rate_limits_suspended", error=type(error).__name__)
        self._is_down = True
        self._counters.clear()
        self._unsynced.clear()

    def _apply_answer(self, batch: dict[str, _Counter], answer: list[int]) -> None:
        if self._is_down:
            _log.info("rate_limits_resumed")
        self._is_down = False
        now_s = self._clock()
        for counter, total, left_ms in zip(batch.values(), answer[::2], answer[1::2], strict=True):
            counter.synced_total, counter.sending = total, 0
            counter.ends_at = now_s + left_ms / 1000
        self._remove_expired(now_s)

    def _remove_expired(self, now_s: float) -> None:
        """Remove counters of past windows. They are roughly in the order in which their windows began."""
        while self._counters:
            key, counter = next(iter(self._counters.items()))
            if counter.ends_at > now_s or counter.total > counter.synced_total:
                return
            del self._counters[key]
