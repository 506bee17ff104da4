"""Time limits of a saga, and minimum waits between its steps.

Time in which the API was down does not count against an agent that is booting: it could not report. As with an agent's silence
(`hydracore.api.heartbeat_reception`), the count starts again when the API is back.
"""

from __future__ import annotations

import asyncio

from events.retries import run
from events.state import Attempt, Instance
from workers.deps import Deps
from workers.sql import OPERATIONS
from workers.steps import Wait

_REPORTABLE_S = OPERATIONS["reportable_s"]


async def boot_remaining_s(deps: Deps, attempt: Attempt) -> float:
    """The seconds that the server of `attempt` has left to boot; 0 or less once its time is over."""
    assert attempt.intended_ms is not None, "an intent begins an attempt"
    assert attempt.deadline_ms is not None, "an intent sets the deadline"
    return await remaining_s(
        deps, since_ms=attempt.intended_ms, limit_s=(attempt.deadline_ms - attempt.intended_ms) / 1000
    )


async def remaining_s(deps: Deps, *, since_ms: int, limit_s: float) -> float:
    """What is left of the `limit_s` seconds that began at `since_ms`; 0 or less once they are over."""
    passed_s = (deps.now_ms() - since_ms) / 1000
    if passed_s < limit_s:
        return limit_s - passed_s
    # Passed as a duration, because the clocks of the database and of this machine may differ.
    rows = await run(deps.pool, _REPORTABLE_S, {"passed_s": passed_s})
    return limit_s - rows[0][0]


async def wait_for_gap(deps: Deps, state: Instance, *, gap_s: float) -> Wait | None:
    """A `Wait` until `gap_s` seconds have passed since the instance's last event; None if they have.

    If that event's time is in the future, the clock of the process that wrote it is ahead of ours, and the event's age is unknown. To
    wait until the clocks agree could take any time, so this function sleeps for the whole gap instead.
    """
    passed_s = (deps.now_ms() - state.updated_ms) / 1000
    if passed_s < 0:
        await asyncio.sleep(gap_s)
        return None
    return Wait(delay_s=gap_s - passed_s) if passed_s < gap_s else None
