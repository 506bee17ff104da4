"""Keeps one driver within Hetzner's request limit (https://docs.hetzner.cloud/reference/cloud#rate-limiting).

Each answer has the headers `RateLimit-Limit`, `-Remaining` and `-Reset`: the Unix time at which the allowance is full again. It grows
back steadily, by one request a second for a normal project. After a 429, all calls of the driver wait. If little of the allowance is
left, calls are spaced at the pace at which it grows, so that there is no 429.

Calls are also refused while the provider does not answer. Otherwise each call, and all work of the same worker, would wait for its
whole time limit. After pauses that grow, one call at a time is let through, and any answer ends this.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from workers.providers.base import RATE_LIMITED, RETRY_AFTER_S_DEFAULT, UNREACHABLE, ProviderRetry

#: Calls are spaced if less than this share of the allowance is left.
LOW_WATER_SHARE: Final = 0.1

#: The longest time between two calls that are spaced.
SPACING_S_MAX: Final = 5.0

#: The longest wait for `RateLimit-Reset`. That is when *all* of the allowance is back, but a part of it is enough to continue.
RESET_WAIT_S_MAX: Final = 60.0

#: The bounds of a wait. A `Retry-After` outside of them counts as a mistake, and so does a reset in the past, which is seen if this
#: machine's clock is ahead. Without a least wait, calls would be repeated for ever without a pause.
RETRY_AFTER_S_MIN: Final = 1.0
RETRY_AFTER_S_MAX: Final = 3600.0

#: The pauses between two tries of a provider that does not answer: the first pause, and the longest one that they double up to.
SILENCE_S_FIRST: Final = 1.0
SILENCE_S_MAX: Final = 8.0


class Pacer:
    """Delays or refuses the calls of one driver. `monotonic` and `wall` are clocks in seconds."""

    def __init__(self, *, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._blocked_until = 0.0
        self._next_slot = 0.0
        self._spacing_s = 0.0
        #: The present pause between two tries; 0 while the provider answers.
        self._silence_s = 0.0
        self._silent_until = 0.0
        self._silent_since = float("-inf")
        self._answered_at = float("-inf")

    def refuse_if_silent(self) -> None:
        """Raises `ProviderRetry` during the pauses of a provider that does not answer."""
        wait_s = self._silent_until - self._monotonic()
        if self._silence_s > 0.0 and wait_s > 0.0:
            raise ProviderRetry(UNREACHABLE, retry_after_s=wait_s)

    async def wait_for_turn(self, *, timeout_s: float) -> None:
        """Wait until a call may be made. `timeout_s`: the longest that the call, and the wait for it, may take.

        Raises `ProviderRetry` instead of waiting longer, and at once while the provider does not answer.
        """
        await self._slot(timeout_s)
        # After the wait, because the provider may have fallen silent meanwhile.
        self.refuse_if_silent()
        if self._silence_s > 0.0:
            # Only this call tries whether the provider answers again.
            self._silent_until = self._monotonic() + timeout_s

    def record_silence(self, *, since: float) -> None:
        """Record that a call got no answer in time. `since`: when it was sent, by the monotonic clock."""
        if since <= max(self._answered_at, self._silent_since):
            # Another call has had an answer meanwhile, or has recorded the same silence.
            return
        self._silent_since = self._monotonic()
        self._silence_s = min(max(2 * self._silence_s, SILENCE_S_FIRST), SILENCE_S_MAX)
        self._silent_until = self._silent_since + self._silence_s

    def record_answer(self) -> None:
        """Record that the provider has answered, or that a call failed at once."""
        self._answered_at = self._monotonic()
        self._silence_s = 0.0

    async def _slot(self, timeout_s: float) -> None:
        if self._spacing_s > 0.0:
            slot = max(self._next_slot, self._monotonic())
            self._refuse_beyond(timeout_s, slot - self._monotonic())
            self._next_slot = slot + self._spacing_s
            await asyncio.sleep(slot - self._monotonic())
        # In a loop, because another call may meet a 429 while this one sleeps.
        while (wait_s := self._blocked_until - self._monotonic()) > 0.0:
            self._refuse_beyond(timeout_s, wait_s)
            await asyncio.sleep(wait_s)

    def read_rate_limit(self, *, status: int, headers: Mapping[str, str]) -> float | None:
        """Take in the rate limit of an answer. Returns the seconds to wait before the next call, or None if the answer says nothing."""
        limit = _number(headers.get("ratelimit-limit"))
        remaining = _number(headers.get("ratelimit-remaining"))
        reset = _number(headers.get("ratelimit-reset"))
        reset_in_s = max(0.0, reset - self._wall()) if reset is not None else None
        self._space(limit, remaining, reset_in_s)
        retry_after_s = _number(headers.get("retry-after"))
        if status != 429:  # noqa: PLR2004 - "too many requests"
            return None if retry_after_s is None else _clamp(retry_after_s)
        if retry_after_s is None:
            retry_after_s = RETRY_AFTER_S_DEFAULT if reset_in_s is None else min(reset_in_s, RESET_WAIT_S_MAX)
        wait_s = _clamp(retry_after_s)
        self._blocked_until = max(self._blocked_until, self._monotonic() + wait_s)
        return wait_s

    def _space(self, limit: float | None, remaining: float | None, reset_in_s: float | None) -> None:
        if limit is None or remaining is None or reset_in_s is None:
            return
        if remaining >= limit * LOW_WATER_SHARE:
            self._spacing_s = 0.0
            return
        self._spacing_s = min(reset_in_s / max(1.0, limit - remaining), SPACING_S_MAX)

    def _refuse_beyond(self, timeout_s: float, wait_s: float) -> None:
        if wait_s > timeout_s:
            raise ProviderRetry(RATE_LIMITED, retry_after_s=wait_s)


def _clamp(wait_s: float) -> float:
    return min(max(wait_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)


def _number(text: str | None) -> float | None:
    """The number of seconds or requests in a header, or None. This provider does not use HTTP dates."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
