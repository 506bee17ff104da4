"""The creation of an intended server, and what follows from each answer of the provider."""

from __future__ import annotations

import asyncio

import structlog

from events import commands as c
from events.state import Attempt, Instance
from workers.deps import Deps
from workers.failed_attempts import fail_attempt
from workers.labels import instance_labels, server_labels
from workers.providers.base import (
    CreateServer,
    Provider,
    ProviderError,
    ProviderNameTaken,
    ProviderNoCapacity,
    ProviderRefused,
    ProviderWait,
    Server,
)
from workers.steps import RETRY_AFTER_S_MAX, Continue, Retry, StepResult, retry_for
from workers.user_data import user_data

_log = structlog.get_logger(__name__)


async def create_server(deps: Deps, state: Instance, attempt: Attempt, *, first: bool) -> StepResult:
    """Create the intended server. Call it only if it is certain that none exists.

    `first`: whether this is the first create call of the attempt. Otherwise an earlier call may still create a server, even if the
    provider refuses this one.
    """
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return Retry(code="provider_not_configured")
    assert attempt.server_name is not None, "an intent names the server"
    order = CreateServer(
        name=attempt.server_name,
        server_type=attempt.server_type,
        location=attempt.location,
        image=attempt.image,
        user_data=user_data(
            control_plane_url=deps.settings.public_url,
            instance_id=state.id,
            attempt=attempt,
            master_keys=deps.settings.master_keys,
        ),
        labels=server_labels(deps.settings.installation, state.id, attempt),
    )
    try:
        created = await provider.create_server(order)
    except ProviderNoCapacity as error:
        return await fail_attempt(deps, state, attempt, code=error.code, retryable=True, nothing_made=first)
    except ProviderRefused as error:
        return await fail_attempt(deps, state, attempt, code=error.code, retryable=False, nothing_made=first)
    except ProviderNameTaken as error:
        return await _resolve_name_conflict(deps, state, attempt, provider, conflict=error, first=first)
    except ProviderError as error:
        return retry_for(error)
    # The last action ends when the server runs; the ones before it only create the server.
    action_id = created.action_ids[-1] if created.action_ids else None
    return await record_created(deps, state, attempt, created.server, action_id=action_id, adopted=False)


async def _resolve_name_conflict(
    deps: Deps, state: Instance, attempt: Attempt, provider: Provider, *, conflict: ProviderNameTaken, first: bool
) -> StepResult:
    """Find out which server has the name of the intended one.

    If it is not ours, a search by label would never find it, and the attempt would wait until its boot time is over. So it fails now.
    """
    assert attempt.server_name is not None, "an intent names the server"
    try:
        holder = await provider.get_server_named(attempt.server_name)
    except ProviderError as error:
        return retry_for(error)
    if holder is None or instance_labels(deps.settings.installation, state.id).items() <= holder.labels.items():
        # Created by an earlier call whose answer was lost, or for an older attempt: the retry finds it by its labels.
        return Retry(code=conflict.code, is_expected=True)
    _log.warning("server_name_taken", instance_id=str(state.id), server_id=holder.id, provider=attempt.provider)
    return await fail_attempt(deps, state, attempt, code="server_name_taken", retryable=False, nothing_made=first)


async def record_created(
    deps: Deps, state: Instance, attempt: Attempt, server: Server, *, action_id: str | None, adopted: bool
) -> StepResult:
    """Record the server of `attempt`, or delete it if the attempt has ended meanwhile. `adopted`: it was found, not created just now."""
    command = c.RecordServerCreated(
        at_ms=deps.now_ms(),
        attempt=attempt.number,
        server_id=server.id,
        ipv4=server.ipv4,
        ipv6=server.ipv6,
        action_id=action_id,
        adopted=adopted,
    )
    # Appended at any version: the agent may have enrolled, or a deletion may have been requested, in the meantime.
    outcome = await deps.store.execute(state.id, command, deps.origin(state.id))
    facts = {"instance_id": str(state.id), "attempt": attempt.number, "server_id": server.id}
    now = outcome.state.attempt
    if now is not None and now.server_id == server.id:
        _log.info("server_created", adopted=adopted, **facts)
        return Continue(state=outcome.state)
    # The attempt had ended before the server was there. The log already says that it has none, so nobody will look for it again.
    try:
        await _delete_late_server(deps.providers[attempt.provider], server)
    except ProviderError as error:
        return retry_for(error)
    _log.warning("late_server_deleted", **facts)
    return Continue(state=outcome.state)


async def _delete_late_server(provider: Provider, server: Server) -> None:
    """Delete `server`, and retry while the provider is busy or has it locked, as it does during creation.

    The time limit of `advance` ends this. The sweep then removes the server as an orphan.
    """
    while True:
        try:
            return await provider.delete_server(server.id)
        except ProviderWait as error:
            await asyncio.sleep(min(error.retry_after_s, RETRY_AFTER_S_MAX))
