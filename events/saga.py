"""What an instance needs next: a pure function of its state, so that any worker, at any time, does the same thing.

`next_step(state)` is level-triggered: it looks at what is, never at which message woke it. `wake_at_ms(state)` is when
the control plane has something to do for the instance; it stands in the read table, so a timer survives any crash.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from events import lifecycle
from events.state import ATTEMPTS_MAX, Attempt, Instance
from events.types import TeardownStep


class PlanAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """Choose a placement and intend a server."""

    number: int


class EnsureServer(msgspec.Struct, frozen=True, kw_only=True):
    """Find the intended server at the provider, or create it."""

    attempt: Attempt


class AwaitAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do until the agent reports or `deadline_ms` passes."""

    attempt: Attempt
    deadline_ms: int


class VerifyAgent(msgspec.Struct, frozen=True, kw_only=True):
    """The agent says it is healthy: look for ourselves."""

    attempt: Attempt


class DiscardServer(msgspec.Struct, frozen=True, kw_only=True):
    """Remove whatever a failed attempt left at the provider."""

    attempt: Attempt


class AbandonProvisioning(msgspec.Struct, frozen=True, kw_only=True):
    """No placement is left to try, or none can help."""

    code: str


class TearDown(msgspec.Struct, frozen=True, kw_only=True):
    step: TeardownStep


class FinishDeletion(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is owed to this instance."""

    why: Literal["running", "failed", "error", "deleted"]


#: A step that the control plane owes.
Owed = (
    PlanAttempt
    | EnsureServer
    | AwaitAgent
    | VerifyAgent
    | DiscardServer
    | AbandonProvisioning
    | TearDown
    | FinishDeletion
)

Step = Owed | Rest


def next_step(state: Instance) -> Step:
    """The one thing to do next. Never raises."""
    match state.status:
        case lifecycle.PENDING:
            return PlanAttempt(number=1)
        case lifecycle.PROVISIONING:
            return _provisioning(state)
        case lifecycle.DELETING:
            step = state.teardown_step
            return FinishDeletion() if step is None else TearDown(step=step)
        case lifecycle.RUNNING | lifecycle.FAILED | lifecycle.ERROR | lifecycle.DELETED:
            return Rest(why=state.status)


def _provisioning(state: Instance) -> Step:
    attempt = state.attempt
    assert attempt is not None, "provisioning begins with an attempt"
    if attempt.failure is not None:
        if attempt.may_have_server:
            return DiscardServer(attempt=attempt)
        if not state.retryable or attempt.number >= ATTEMPTS_MAX:
            return AbandonProvisioning(code=attempt.failure)
        return PlanAttempt(number=attempt.number + 1)
    if attempt.server_id is None:
        return EnsureServer(attempt=attempt)
    if state.provisioning_stage == "verifying":
        return VerifyAgent(attempt=attempt)
    assert attempt.deadline_ms is not None, "an intent sets the deadline"
    return AwaitAgent(attempt=attempt, deadline_ms=attempt.deadline_ms)


def wake_at_ms(state: Instance) -> int | None:
    """When the control plane next has something to do here (milliseconds since 1970), or None for never.

    What is owed at once is so from the last change on: by that, and not by their own clocks, readers know it.
    """
    step = next_step(state)
    if isinstance(step, Rest):
        return None
    if isinstance(step, AwaitAgent):
        return step.deadline_ms
    return state.updated_ms
