"""Keeps one driver within Hetzner's request limit (https://docs.hetzner.cloud/reference/cloud#rate-limiting).

Every answer carries `RateLimit-Limit`, `-Remaining` and `-Reset` (Unix time at which the allowance is whole again; it grows
back steadily, one request a second for a normal project). A 429 closes the gate for everybody who shares the driver. When
little is left, calls are spaced at the pace at which the allowance grows, so that the 429 does not come at all.

A provider that answers nobody closes the gate too: each call would wait for its whole time, and so would all work that shares a
worker with it. Then one call at a time tries, after pauses that grow, and any answer opens the gate.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from workers.providers.base import RATE_LIMITED, RETRY_AFTER_S_DEFAULT, UNREACHABLE, ProviderRetry

#: Below this share of the allowance, calls are spaced.
LOW_WATER_SHARE: Final = 0.1

#: No single call is held back longer than this for the sake of spacing.
SPACING_S_MAX: Final = 5.0

#: `RateLimit-Reset` tells when *all* of the allowance is back; a part of it is enough to go on.
RESET_WAIT_S_MAX: Final = 60.0

#: A `Retry-After` outside of these is taken for a mistake; so is a reset in the past, where this machine's clock is ahead.
#: What is tried again after no time at all would be tried for ever without a pause.
RETRY_AFTER_S_MIN: Final = 1.0
RETRY_AFTER_S_MAX: Final = 3600.0

#: The pauses between two tries of a provider that does not answer: the first one, and what they double to at most.
SILENCE_S_FIRST: Final = 1.0
SILENCE_S_MAX: Final = 8.0


class Pacer:
    """The gate before each call of one driver. `monotonic` and `wall` are clocks in seconds."""

    def __init__(self, *, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._closed_until = 0.0
        self._next_slot = 0.0
        self._spacing_s = 0.0
        #: 0 while the provider answers.
        self._silence_s = 0.0
        self._silent_until = 0.0
        self._silent_since = float("-inf")
        self._heard_at = float("-inf")

    def refuse_if_silent(self) -> None:
        """Raises `ProviderRetry` while the provider is left alone, because it does not answer."""
        wait_s = self._silent_until - self._monotonic()
        if self._silence_s > 0.0 and wait_s > 0.0:
            raise ProviderRetry(UNREACHABLE, retry_after_s=wait_s)

    async def turn(self, *, patience_s: float) -> None:
        """Return when a call may be made, which then takes `patience_s` at most.

        Raises `ProviderRetry` instead of waiting longer than that, and at once while the provider does not answer.
        """
        await self._slot(patience_s)
        self.refuse_if_silent()
        if self._silence_s > 0.0:
            # This one finds out, alone.
            self._silent_until = self._monotonic() + patience_s

    def silent(self, *, since: float) -> None:
        """No answer came in time to a call made at `since`, by the monotonic clock."""
        if since <= max(self._heard_at, self._silent_since):
            # Others have had answers meanwhile, or have said the same of the same silence.
            return
        self._silent_since = self._monotonic()
        self._silence_s = min(max(2 * self._silence_s, SILENCE_S_FIRST), SILENCE_S_MAX)
        self._silent_until = self._silent_since + self._silence_s

    def heard(self) -> None:
        """The provider has answered, or refused a call at once."""
        self._heard_at = self._monotonic()
        self._silence_s = 0.0

    async def _slot(self, patience_s: float) -> None:
        if self._spacing_s > 0.0:
            slot = max(self._next_slot, self._monotonic())
            self._refuse_beyond(patience_s, slot - self._monotonic())
            self._next_slot = slot + self._spacing_s
            await asyncio.sleep(slot - self._monotonic())
        # In a loop, because another call may meet a 429 while this one sleeps.
        while (wait_s := self._closed_until - self._monotonic()) > 0.0:
            self._refuse_beyond(patience_s, wait_s)
            await asyncio.sleep(wait_s)

    def learn(self, *, status: int, headers: Mapping[str, str]) -> float | None:
        """Take in an answer. Returns how long to wait before the next call when the answer says so, in seconds."""
        limit = _number(headers.get("ratelimit-limit"))
        remaining = _number(headers.get("ratelimit-remaining"))
        reset = _number(headers.get("ratelimit-reset"))
        reset_in_s = max(0.0, reset - self._wall()) if reset is not None else None
        self._space(limit, remaining, reset_in_s)
        retry_after_s = _number(headers.get("retry-after"))
        if status != 429:  # noqa: PLR2004 - "too many requests"
            return None if retry_after_s is None else _sensible(retry_after_s)
        if retry_after_s is None:
            retry_after_s = RETRY_AFTER_S_DEFAULT if reset_in_s is None else min(reset_in_s, RESET_WAIT_S_MAX)
        wait_s = _sensible(retry_after_s)
        self._closed_until = max(self._closed_until, self._monotonic() + wait_s)
        return wait_s

    def _space(self, limit: float | None, remaining: float | None, reset_in_s: float | None) -> None:
        if limit is None or remaining is None or reset_in_s is None:
            return
        if remaining >= limit * LOW_WATER_SHARE:
            self._spacing_s = 0.0
            return
        self._spacing_s = min(reset_in_s / max(1.0, limit - remaining), SPACING_S_MAX)

    def _refuse_beyond(self, patience_s: float, wait_s: float) -> None:
        if wait_s > patience_s:
            raise ProviderRetry(RATE_LIMITED, retry_after_s=wait_s)


def _sensible(wait_s: float) -> float:
    return min(max(wait_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)


def _number(text: str | None) -> float | None:
    """A header's number of seconds or requests. HTTP dates are not used by this provider."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
