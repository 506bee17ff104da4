"""How often somebody may ask: counted here, summed up over all processes in Redis, refused on Redis's word alone.

A request is admitted from this process's memory, in two microseconds. What was admitted is told to Redis a moment
later, everybody's in one round trip, and the answer says what all processes together have counted; so processes agree
within `SHARE_S` and a round trip. Nobody is refused on what this process alone believes: where its own count says that
the limit is reached, Redis is asked at once. Without Redis nobody is refused (docs/adr/0008-rate-limits-settle-later.md).
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
from hydracore.api.given import RawHeaders
from hydracore.api.operations import Authenticate
from hydracore.auth import Principal
from hydracore.redis_errors import NO_ANSWER

WINDOW_S: Final = 60

#: How long a request that was admitted may stay untold: the longest that processes disagree, but for a round trip.
SHARE_S: Final = 0.25

#: How long Redis may take before it counts as down, and how soon it is tried again then.
TIMEOUT_S: Final = 0.25
RETRY_S: Final = 1.0

#: Counters in one round trip: while they are added to, Redis serves nobody else.
BATCH_MAX: Final = 1_000

#: An agent sends what it has kept through an outage all at once: it may ask this many times as often as a user.
AGENT_FACTOR: Final = 10

#: How often Redis is asked for one request before it is let through: once for what is on its way, once for all.
ASKED_MAX: Final = 3

KEY_PREFIX: Final = "hydracore:rate:"

_SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text()

_log = structlog.get_logger(__name__)


class _Counter:
    """One principal's requests in the window under way. `ends_at`: by our clock; until Redis has told, it does not end."""

    __slots__ = ("ends_at", "known", "sending", "unsent")

    def __init__(self) -> None:
        #: The total of all processes, as Redis told it last.
        self.known = 0
        #: Admitted here and on the way to Redis; admitted here since.
        self.sending = 0
        self.unsent = 0
        self.ends_at = math.inf

    @property
    def total(self) -> int:
        return self.known + self.sending + self.unsent


class RateLimiter:
    """One per process. `clock`: seconds that never go back."""

    def __init__(self, redis: Redis, *, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert per_minute > 0, "without a limit there is nothing to count"
        self._per_minute = per_minute
        self._clock = clock
        self._script = redis.register_script(_SCRIPT)
        self._counters: dict[str, _Counter] = {}
        #: Those of the counters about which Redis is to be asked.
        self._untold: dict[str, _Counter] = {}
        self._is_down = False
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def behind(self, authenticate: Authenticate) -> Authenticate:
        """`authenticate`, letting nobody in who asks too often: it then raises `TooManyRequests`."""

        async def admitted(headers: RawHeaders) -> object:
            who = await authenticate(headers)
            await self.admit(who)
            return who

        return admitted

    async def admit(self, who: object) -> None:
        """Count one request. Raises `TooManyRequests`."""
        key, limit = self._rule(who)
        for _ in range(ASKED_MAX):
            counter = self._counter(key)
            if self._is_down or counter.total < limit:
                counter.unsent += 1
                self._tell_soon(key, counter)
                return
            if counter.known >= limit:
                # Redis is asked again all the same: it may have gone away, or have been emptied.
                self._tell_soon(key, counter)
                raise TooManyRequests(max(1, math.ceil(counter.ends_at - self._clock())))
            await asyncio.shield(self._tell_now())

    async def aclose(self) -> None:
        """Forget what was not told yet."""
        self._untold.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._telling is not None:
            await self._telling

    def _rule(self, who: object) -> tuple[str, int]:
        """Whose counter it is and what it may come to. An API key's requests are its own, whomever it acts for."""
        if isinstance(who, CallingAgent):
            return f"agent/{who.instance_id}", self._per_minute * AGENT_FACTOR
        assert isinstance(who, Principal), who
        if who.key_id is not None:
            return f"api_key/{who.key_id}", self._per_minute
        # A slash can be in neither id.
        return f"user/{who.tenant_id}/{who.user_id}", self._per_minute

    def _counter(self, key: str) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter()
        elif self._clock() >= counter.ends_at:
            # The next window begins with what Redis is told next; those that began first stay in front.
            counter.known, counter.ends_at = 0, math.inf
            self._counters[key] = self._counters.pop(key)
        return counter

    def _tell_soon(self, key: str, counter: _Counter) -> None:
        self._untold[key] = counter
        if self._timer is None and self._telling is None:
            delay_s = RETRY_S if self._is_down else SHARE_S
            # A context of its own: what it logs is not about the request that happened to start it.
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tell_now, context=Context())

    def _tell_now(self) -> asyncio.Task[None]:
        """The round trip under way, or one that begins now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell(), context=Context())
        return self._telling

    async def _tell(self) -> None:
        batch = dict(islice(self._untold.items(), BATCH_MAX))
        for key, counter in batch.items():
            del self._untold[key]
            counter.sending, counter.unsent = counter.unsent, 0
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told: list[int] = await self._script(
                    keys=[KEY_PREFIX + key for key in batch],
                    args=[WINDOW_S * 1000, *(counter.sending for counter in batch.values())],
                )
        except NO_ANSWER as error:
            self._went_down(error)
        else:
            self._learn(batch, told)
        finally:
            self._telling = None
            for key, counter in islice(self._untold.items(), 1):
                self._tell_soon(key, counter)

    def _went_down(self, error: Exception) -> None:
        """Nobody knows what was counted: it begins anew, and nobody is refused, until Redis answers again."""
        if not self._is_down:
            _log.warning("rate_limits_suspended", error=type(error).__name__)
        self._is_down = True
        self._counters.clear()
        self._untold.clear()

    def _learn(self, batch: dict[str, _Counter], told: list[int]) -> None:
        if self._is_down:
            _log.info("rate_limits_resumed")
        self._is_down = False
        now_s = self._clock()
        for counter, total, left_ms in zip(batch.values(), told[::2], told[1::2], strict=True):
            counter.known, counter.sending = total, 0
            counter.ends_at = now_s + left_ms / 1000
        self._forget_old(now_s)

    def _forget_old(self, now_s: float) -> None:
        """The counters are in the order in which their windows began, more or less."""
        while self._counters:
            key, counter = next(iter(self._counters.items()))
            if counter.ends_at > now_s or counter.total > counter.known:
                return
            del self._counters[key]
