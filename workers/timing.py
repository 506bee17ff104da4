"""What time means to a saga: how long anything may take before it is given up, and how long to let things settle.

An agent that boots while nobody hears it has done nothing wrong, nor has a server of which the whole control plane knew nothing
for a night. As with silence (`hydracore.api.hearing`), the time counts from when the API was back.
"""

from __future__ import annotations

import asyncio

from events.patience import run
from events.state import Attempt, Instance
from workers.deps import Deps
from workers.sql import OPERATIONS
from workers.steps import Wait

_HEARD = OPERATIONS["heard"]


async def boot_left_s(deps: Deps, attempt: Attempt) -> float:
    """For how many seconds more the server of `attempt` may boot; 0 or less where it is over."""
    assert attempt.intended_ms is not None, "an intent begins an attempt"
    assert attempt.deadline_ms is not None, "an intent sets the deadline"
    return await left_s(deps, since_ms=attempt.intended_ms, limit_s=(attempt.deadline_ms - attempt.intended_ms) / 1000)


async def left_s(deps: Deps, *, since_ms: int, limit_s: float) -> float:
    """What is left of `limit_s` seconds since then; 0 or less where it is over."""
    passed_s = (deps.now_ms() - since_ms) / 1000
    if passed_s < limit_s:
        return limit_s - passed_s
    # Given as a duration: the database's clock may not agree with ours.
    rows = await run(deps.pool, _HEARD, {"passed_s": passed_s})
    return limit_s - rows[0][0]


async def settle(deps: Deps, state: Instance, *, gap_s: float) -> Wait | None:
    """What there is to wait for until `gap_s` seconds have passed since the last event, or None.

    Where the clock that wrote that event is ahead of ours, nobody can tell how long ago it was, and waiting for the clocks to agree
    could take any time: the whole gap passes here instead.
    """
    passed_s = (deps.now_ms() - state.updated_ms) / 1000
    if passed_s < 0:
        await asyncio.sleep(gap_s)
        return None
    return Wait(delay_s=gap_s - passed_s) if passed_s < gap_s else None
