"""What a step came to: the saga goes on, or it waits."""

from __future__ import annotations

import msgspec

from events.state import Instance
from workers.providers.base import ProviderError, ProviderLater, ProviderRetry

#: However long a provider wants to be left alone, which its driver sees to: deadlines and alarms of an instance are looked at.
LOOK_AGAIN_S_MAX = 60.0


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Something was appended, or learned that changes what comes next: look at `state` again."""

    state: Instance


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is wrong; look again in `delay_s`. None: when an event or the deadline says so."""

    delay_s: float | None = None


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """It did not work, or not yet; try again, ever later. `code` says why, in our words or the provider's code."""

    code: str
    delay_s: float = 1.0
    #: True for what every healthy saga meets now and then, and nobody needs to be warned of.
    usual: bool = False


Result = Moved | Wait | Trouble


def trouble(error: ProviderError) -> Trouble:
    """A provider's failure as a reason to try again."""
    if isinstance(error, ProviderRetry | ProviderLater):
        return Trouble(code=error.code, delay_s=min(error.retry_after_s, LOOK_AGAIN_S_MAX))
    return Trouble(code=error.code)
