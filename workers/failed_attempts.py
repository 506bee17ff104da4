"""How an attempt fails: with what code, and what becomes of the servers that it may have left at the provider."""

from __future__ import annotations

import structlog

from events import commands as c
from events.saga import AbandonProvisioning, DiscardServer
from events.state import Attempt, Instance
from workers.deps import Deps
from workers.labels import instance_labels, is_accounted_for
from workers.providers.base import Provider, ProviderError, ProviderRefused
from workers.removal import SERVER_STILL_THERE, remove_servers
from workers.steps import Continue, Retry, StepResult, retry_for
from workers.timing import wait_for_gap

_log = structlog.get_logger(__name__)

#: The instance has a server that its history does not account for, for instance after a restore. It may be in use, so an operator has
#: to decide what to do with it.
UNACCOUNTED = Retry(code="server_unaccounted")


async def fail_attempt(
    deps: Deps, state: Instance, attempt: Attempt, *, code: str, retryable: bool, nothing_made: bool = False
) -> StepResult:
    """Record that this attempt failed. The saga then tries the next placement or gives up.

    `nothing_made`: whether the provider itself answered that it has created no server for this attempt.

    Raises `VersionConflict` if the stream has changed since `state`: another worker may have created the server meanwhile.
    """
    command = c.FailAttempt(
        at_ms=deps.now_ms(), attempt=attempt.number, code=code, retryable=retryable, nothing_made=nothing_made
    )
    outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    _log.warning("attempt_failed", instance_id=str(state.id), attempt=attempt.number, code=code)
    return Continue(state=outcome.state)


async def fail_without_server(deps: Deps, state: Instance, attempt: Attempt, provider: Provider) -> StepResult:
    """Fail an attempt whose boot time is over before it had a server.

    If a server that the history does not account for is in the way, another attempt could not remove it either. So none is made.
    """
    try:
        found = await provider.find_servers(instance_labels(deps.settings.installation, state.id))
    except ProviderError:
        found = []
    if all(is_accounted_for(state, server) for server in found):
        return await fail_attempt(deps, state, attempt, code="boot_timeout", retryable=True)
    return await fail_attempt(deps, state, attempt, code=UNACCOUNTED.code, retryable=False)


async def discard_server(deps: Deps, state: Instance, step: DiscardServer) -> StepResult:
    """Delete all servers of a failed attempt, including that of a create call that may still be in flight."""
    attempt = step.attempt
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return Retry(code="provider_not_configured")
    if not attempt.nothing_made and attempt.server_id is None:
        waits = await wait_for_gap(deps, state, gap_s=deps.settings.provider_timeout_s)
        if waits is not None:
            return waits
    try:
        if await remove_servers(deps, state, provider):
            return SERVER_STILL_THERE
    except ProviderError as error:
        # A provider that refused to create the server may also refuse to list servers, for instance because of bad credentials.
        if not (attempt.nothing_made and isinstance(error, ProviderRefused)):
            return retry_for(error)
    command = c.RecordServerDiscarded(at_ms=deps.now_ms(), attempt=attempt.number)
    # Appended at the version that was checked: a server that was recorded since was not deleted.
    outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    return Continue(state=outcome.state)


async def abandon(deps: Deps, state: Instance, step: AbandonProvisioning) -> StepResult:
    """Record that provisioning has failed. The reservations stay until the instance is deleted."""
    outcome = await deps.store.execute_at(
        state, state.id, c.GiveUp(at_ms=deps.now_ms(), code=step.code), deps.origin(state.id)
    )
    _log.warning("provisioning_failed", instance_id=str(state.id), code=step.code)
    return Continue(state=outcome.state)
