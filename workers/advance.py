"""`advance(instance_id)`: carry out the steps of an instance's saga, one after the other, until it has to wait."""

from __future__ import annotations

import asyncio
from typing import assert_never
from uuid import UUID

import psycopg
import structlog

from events import saga
from events.errors import NotFound, StoreUnavailable, VersionConflict
from events.lifecycle import DELETING
from events.state import Instance
from workers import failed_attempts, provision, teardown
from workers.deps import Deps
from workers.erasure import record_missed_erasure
from workers.locks import Hold
from workers.steps import Continue, Retry, StepResult, Wait
from workers.unreadable_histories import HISTORY_ERRORS, HISTORY_UNREADABLE, HistoryUnreadable, reading_history

_log = structlog.get_logger(__name__)

#: The most steps per call. No saga has as many, so more would mean that two steps undo each other.
STEPS_MAX = 100

#: The longest that one call may work; then its step is cancelled. It is less than `actors.CALL_S_MAX`, so that there is time left to
#: record the failure.
ADVANCE_S_MAX = 100.0


async def advance(deps: Deps, instance_id: UUID, *, limit_s: float = ADVANCE_S_MAX) -> None:
    """Advance one instance as far as is possible now. Level-triggered: duplicate, late or needless calls change nothing.

    Raises `StoreUnavailable` and psycopg's errors. The next call resumes a step that was interrupted.
    """
    try:
        with reading_history(instance_id):
            await _advance_within(deps, instance_id, limit_s)
    except HistoryUnreadable:
        # Every retry fails alike until the history is repaired or a release that can read it runs here.
        await deps.schedule.record_failure(instance_id, version=None, code=HISTORY_UNREADABLE, delay_s=1.0)
    except NotFound:
        # If a server was created meanwhile, it has no instance, and the sweep handles it as an orphan.
        hint = "the log lost it: a standby without it was promoted, or a backup was restored"
        _log.error("instance_gone", instance_id=str(instance_id), hint=hint)


async def _advance_within(deps: Deps, instance_id: UUID, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await _advance(deps, instance_id)
    except TimeoutError:
        # The cancelled step has recorded neither a failure nor a time to retry at. Without these, no alarm would be raised.
        state = await deps.store.load(instance_id)
        if state is not None and not isinstance(saga.next_step(state), saga.Idle):
            await _pause(deps, state, Retry(code="took_too_long"))


async def _advance(deps: Deps, instance_id: UUID) -> None:
    while True:
        async with deps.locks.hold(instance_id) as hold:
            if hold is None:
                return
            state = await deps.store.load(instance_id)
            if state is None:
                return
            seen = await _advance_locked(deps, state, hold)
        # A worker that found the lock taken may have been called for an event that this one has not seen: then look again.
        if hold.version_after == seen:
            return


async def _advance_locked(deps: Deps, state: Instance, hold: Hold) -> int:
    """Advance the instance under its lock. Returns the version of the stream at the last look."""
    for _ in range(STEPS_MAX):
        step = saga.next_step(state)
        if isinstance(step, saga.Idle):
            await deps.schedule.clear(state.id)
            return state.version
        result = await _try_step(deps, state, step)
        if not isinstance(result, Continue):
            return await _pause(deps, state, result)
        state = result.state
        if hold.is_lost:
            # Another worker may hold the lock by now. The caller tries to get it again.
            return state.version
    raise AssertionError(f"{state.id} did not come to rest in {STEPS_MAX} steps")


async def _try_step(deps: Deps, state: Instance, step: saga.DueStep) -> StepResult:
    # In two blocks, because to load the state after a lost race may fail in the same ways as the step.
    try:
        try:
            return await execute_step(deps, state, step)
        except VersionConflict as lost:
            return Continue(state=await _load_after(deps, lost))
    except (NotFound, StoreUnavailable, psycopg.OperationalError, *HISTORY_ERRORS):
        # The caller handles these: they are not about this step. Errors about a history must not be logged here: they may quote events.
        raise
    except Exception:  # noqa: BLE001 - a bug, or a setting that is gone: retried with backoff, and it can raise the alarm
        _log.exception("step_broke", instance_id=str(state.id), step=type(step).__name__)
        return Retry(code="internal_error")


async def execute_step(deps: Deps, state: Instance, step: saga.DueStep) -> StepResult:
    """Carry out one step."""
    recorded = await record_missed_erasure(deps, state)
    if recorded is not None:
        return recorded
    match step:
        case saga.PlanAttempt():
            return await provision.plan_attempt(deps, state, step)
        case saga.EnsureServer():
            return await provision.ensure_server(deps, state, step)
        case saga.AwaitAgent():
            return await provision.await_agent(deps, state, step)
        case saga.VerifyAgent():
            return await provision.verify_agent(deps, state, step)
        case saga.DiscardServer():
            return await failed_attempts.discard_server(deps, state, step)
        case saga.AbandonProvisioning():
            return await failed_attempts.abandon(deps, state, step)
        case saga.TearDown():
            return await teardown.tear_down(deps, state, step)
        case saga.FinishDeletion():
            return await teardown.finish_deletion(deps, state)
        case _:
            assert_never(step)


async def _load_after(deps: Deps, lost: VersionConflict) -> Instance:
    fresh = await deps.store.load_after_conflict(lost)
    if fresh is None:
        raise NotFound(lost.stream_id)
    return fresh


async def _pause(deps: Deps, state: Instance, result: Wait | Retry) -> int:
    """Record in the database when to look again. Returns the version of the stream afterwards: an alarm appends an event."""
    if isinstance(result, Wait):
        if result.delay_s is not None:
            await deps.schedule.postpone(state.id, version=state.version, delay_s=result.delay_s)
        return state.version
    failures = await deps.schedule.record_failure(
        state.id, version=state.version, code=result.code, delay_s=result.delay_s
    )
    if failures is None:
        return state.version
    if not result.is_expected:
        provider = None if state.attempt is None else state.attempt.provider
        _log.warning("step_failed", instance_id=str(state.id), code=result.code, failures=failures, provider=provider)
    stuck_s = (deps.now_ms() - state.updated_ms) / 1000
    if state.status == DELETING and stuck_s >= deps.settings.teardown_alarm_s:
        return await teardown.record_blocked(deps, state, code=result.code)
    return state.version
