"""The provisioning steps of an instance: plan an attempt, find or create its server, and verify that the agent runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from operator import attrgetter

import structlog

from events import commands as c
from events.errors import ReservationTaken
from events.saga import AbandonProvisioning, AwaitAgent, DiscardServer, EnsureServer, PlanAttempt, VerifyAgent
from events.state import Attempt, Instance
from hydracore.agent_client import AGENT_PORT, AgentAddress, AgentClientError
from hydracore.tokens import enrol_token, hash_token, held_control_token
from workers.deps import Deps
from workers.health import record_first_heartbeat
from workers.labels import instance_labels, is_accounted_for, is_made_for, server_labels
from workers.placement import free_address, hostname_of, next_placement
from workers.providers.base import (
    CreateServer,
    Provider,
    ProviderError,
    ProviderLater,
    ProviderNameTaken,
    ProviderNoCapacity,
    ProviderRefused,
    ProviderRetry,
    Server,
)
from workers.removal import SERVER_STILL_THERE, assert_unchanged, may_delete, remove_servers
from workers.steps import RETRY_AFTER_S_MAX, Continue, Retry, StepResult, Wait, retry_for
from workers.timing import boot_remaining_s, remaining_s, wait_for_gap
from workers.user_data import new_nonce, server_name, user_data

_log = structlog.get_logger(__name__)

#: The instance has a server that its history does not account for, for instance after a restore. It may be in use, so an operator has
#: to decide what to do with it.
UNACCOUNTED = Retry(code="server_unaccounted")


async def plan_attempt(deps: Deps, state: Instance, step: PlanAttempt) -> StepResult:
    """Choose a placement, reserve the addresses, record the intent, and create the server."""
    placement = next_placement(deps.catalogue, state)
    if placement is None:
        return await _wait_for_capacity(deps, state, code="no_placement")
    vpn_ip = state.vpn_ip or await free_address(deps, state)
    if vpn_ip is None:
        return await _wait_for_capacity(deps, state, code="no_address")
    now_ms, nonce = deps.now_ms(), new_nonce()
    token = enrol_token(deps.settings.master_keys.present, state.id, step.number, nonce)
    command = c.PlanServer(
        at_ms=now_ms,
        attempt=step.number,
        provider=placement.provider,
        server_type=placement.server_type,
        location=placement.location,
        image=placement.image,
        hostname=state.hostname or hostname_of(state.id),
        vpn_ip=vpn_ip,
        server_name=server_name(state.id),
        enrol_nonce=nonce,
        enrol_token_hash=hash_token(token).hex(),
        enrol_expires_ms=now_ms + int(deps.settings.enrol_ttl_s * 1000),
        deadline_ms=now_ms + int(deps.settings.boot_timeout_s * 1000),
    )
    try:
        outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    except ReservationTaken:
        # Another instance was given the address meanwhile; the next search finds another one.
        return Continue(state=state)
    if outcome.duplicate:
        # The command was appended before, but the answer was lost with the connection. The state may have changed since.
        return Continue(state=outcome.state)
    _log.info("server_intended", instance_id=str(state.id), attempt=step.number, provider=placement.provider)
    assert outcome.state.attempt is not None
    # This call has just appended the intent, so no create call can have been sent for it: there is no server to look for.
    return await create_server(deps, outcome.state, outcome.state.attempt, first=True)


async def _wait_for_capacity(deps: Deps, state: Instance, *, code: str) -> StepResult:
    """Retry, as the catalogue may change and addresses may become free; but for no longer than a boot may take. Then give up."""
    since_ms = state.created_ms if state.attempt is None else state.updated_ms
    if await remaining_s(deps, since_ms=since_ms, limit_s=deps.settings.boot_timeout_s) > 0:
        return Retry(code=code)
    return await abandon(deps, state, AbandonProvisioning(code=code))


async def ensure_server(deps: Deps, state: Instance, step: EnsureServer) -> StepResult:
    """Record the intended server if the provider has it already. Create it only if it is certain that it does not exist."""
    attempt = step.attempt
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return Retry(code="provider_not_configured")
    if await boot_remaining_s(deps, attempt) <= 0:
        return await _fail_without_server(deps, state, attempt, provider)
    try:
        found = await provider.find_servers(instance_labels(deps.settings.installation, state.id))
        matching = sorted((server for server in found if is_made_for(attempt, server)), key=attrgetter("age_order"))
        # Servers of older attempts, or duplicates at a provider where names are not unique.
        extras = [server for server in found if server not in matching[:1] and may_delete(state, server)]
        if extras or not matching:
            # A deletion may have been requested meanwhile: no server must be created after it.
            await assert_unchanged(deps, state)
        for extra in extras:
            await provider.delete_server(extra.id)
            _log.warning("extra_server_deleted", instance_id=str(state.id), server_id=extra.id)
    except ProviderError as error:
        return retry_for(error)
    if matching:
        return await _record_created(deps, state, attempt, matching[0], action_id=None, adopted=True)
    if found:
        return SERVER_STILL_THERE if len(extras) == len(found) else UNACCOUNTED
    return await create_server(deps, state, attempt, first=False)


async def _fail_without_server(deps: Deps, state: Instance, attempt: Attempt, provider: Provider) -> StepResult:
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
    return await _record_created(deps, state, attempt, created.server, action_id=action_id, adopted=False)


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


async def _record_created(
    deps: Deps, state: Instance, attempt: Attempt, server: Server, *, action_id: str | None, adopted: bool
) -> StepResult:
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
        except (ProviderRetry, ProviderLater) as error:
            await asyncio.sleep(min(error.retry_after_s, RETRY_AFTER_S_MAX))


async def await_agent(deps: Deps, state: Instance, step: AwaitAgent) -> StepResult:
    """Wait for the agent's reports, which advance the saga. Fail the attempt once its boot time is over."""
    rest_s = await boot_remaining_s(deps, step.attempt)
    if rest_s <= 0:
        return await fail_attempt(deps, state, step.attempt, code="boot_timeout", retryable=True)
    # Before the deadline, `wake_at` schedules the next look. After it, there is time left only because the API was down, and the next
    # look has to be scheduled here.
    return Wait() if deps.now_ms() < step.deadline_ms else Wait(delay_s=rest_s)


async def verify_agent(deps: Deps, state: Instance, step: VerifyAgent) -> StepResult:
    """Ask the agent at its VPN address, with its control token, whether it is the right one and healthy."""
    agent = state.agent
    if agent is not None and agent.control_key_id is not None and state.vpn_ip is not None:
        token = held_control_token(
            deps.settings.master_keys, state.id, agent.control_key_id, key_hash=agent.control_key_hash
        )
        with suppress(AgentClientError):
            status = await deps.agent_client.status(AgentAddress(state.vpn_ip, AGENT_PORT, token))
            if status.healthy and (status.instance_id, status.attempt) == (state.id, step.attempt.number):
                await record_first_heartbeat(deps, state.id, status)
                command = c.MarkReady(at_ms=deps.now_ms(), attempt=step.attempt.number)
                outcome = await deps.store.execute(state.id, command, deps.origin(state.id))
                _log.info("instance_ready", instance_id=str(state.id))
                return Continue(state=outcome.state)
    if await boot_remaining_s(deps, step.attempt) <= 0:
        return await fail_attempt(deps, state, step.attempt, code="attempt_unverified", retryable=True)
    return Retry(code="attempt_unverified", delay_s=0.5)


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
