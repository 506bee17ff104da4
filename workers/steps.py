"""What a step came to: the saga goes on, or it waits."""

from __future__ import annotations

import msgspec

from events.state import Instance


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
