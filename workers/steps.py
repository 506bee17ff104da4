"""The results of a saga step: the saga continues, waits, or retries the step."""

from __future__ import annotations

import msgspec

from events.state import Instance
from workers.providers.base import ProviderError, ProviderWait

#: The longest pause that a provider's answer causes, even if it asks for a longer one: the instance's deadlines and alarms have to be
#: checked. The provider's driver still keeps to the longer pause.
RETRY_AFTER_S_MAX = 60.0


class Continue(msgspec.Struct, frozen=True, kw_only=True):
    """The step is done, or the stream has changed meanwhile: continue with the next step of `state`."""

    state: Instance


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is wrong: look again after `delay_s` seconds. None: at the next event or at the deadline (`wake_at`)."""

    delay_s: float | None = None


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The step failed or is not finished: retry it with a growing backoff that starts at `delay_s` seconds.

    `code` is the reason: one of our codes or one of the provider's.
    """

    code: str
    delay_s: float = 1.0
    #: Whether healthy sagas meet this, too, so that it is not logged as a warning.
    is_expected: bool = False


StepResult = Continue | Wait | Retry


def retry_for(error: ProviderError) -> Retry:
    """The retry that a provider's failure calls for."""
    if isinstance(error, ProviderWait):
        return Retry(code=error.code, delay_s=min(error.retry_after_s, RETRY_AFTER_S_MAX))
    return Retry(code=error.code)
