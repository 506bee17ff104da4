"""The next step of an instance: a pure function of its state, so that any worker, at any time, does the same thing.

`next_step(state)` is level-triggered: it depends on the state, and not on the message that woke the worker. `wake_at_ms(state)` is the
time from which the control plane has something to do for the instance. It is in the read table, so a timer survives any crash.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from events import lifecycle
from events.state import ATTEMPTS_MAX, Attempt, Instance
from events.types import TeardownStep


class PlanAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """Choose a placement, and record the intent to create a server there."""

    number: int


class EnsureServer(msgspec.Struct, frozen=True, kw_only=True):
    """Find the intended server at the provider, or create it."""

    attempt: Attempt


class AwaitAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do until the agent reports or `deadline_ms` passes."""

    attempt: Attempt
    deadline_ms: int


class VerifyAgent(msgspec.Struct, frozen=True, kw_only=True):
    """The agent reports that it is healthy: ask it directly."""

    attempt: Attempt


class DiscardServer(msgspec.Struct, frozen=True, kw_only=True):
    """Remove the servers that a failed attempt has left at the provider."""

    attempt: Attempt


class AbandonProvisioning(msgspec.Struct, frozen=True, kw_only=True):
    """End provisioning: no placement is left, or no placement can help."""

    code: str


class TearDown(msgspec.Struct, frozen=True, kw_only=True):
    step: TeardownStep


class FinishDeletion(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """The control plane has nothing to do for this instance."""

    status: Literal["running", "failed", "error", "deleted"]


#: A step that the control plane has to do.
DueStep = (
    PlanAttempt
    | EnsureServer
    | AwaitAgent
    | VerifyAgent
    | DiscardServer
    | AbandonProvisioning
    | TearDown
    | FinishDeletion
)

Step = DueStep | Idle


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
            return Idle(status=state.status)


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

    A step that is due at once has the time of the last change. Readers recognize it by that, and not by their own clocks.
    """
    step = next_step(state)
    if isinstance(step, Idle):
        return None
    if isinstance(step, AwaitAgent):
        return step.deadline_ms
    return state.updated_ms
