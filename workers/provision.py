"""The provisioning steps of an instance: plan an attempt, find or create its server, and verify that the agent runs."""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter

import structlog

from events import commands as c
from events.errors import ReservationTaken
from events.saga import AbandonProvisioning, AwaitAgent, EnsureServer, PlanAttempt, VerifyAgent
from events.state import Instance
from hydracore.agent_client import AGENT_PORT, AgentAddress, AgentClientError
from hydracore.tokens import enrol_token, hash_token, held_control_token
from workers.creation import create_server, record_created
from workers.deps import Deps
from workers.failed_attempts import UNACCOUNTED, abandon, fail_attempt, fail_without_server
from workers.health import record_first_heartbeat
from workers.labels import instance_labels, is_made_for
from workers.placement import free_address, hostname_of, next_placement
from workers.providers.base import ProviderError
from workers.removal import SERVER_STILL_THERE, assert_unchanged, may_delete
from workers.steps import Continue, Retry, StepResult, Wait, retry_for
from workers.timing import boot_remaining_s, remaining_s
from workers.user_data import new_nonce, server_name

_log = structlog.get_logger(__name__)


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
        return await fail_without_server(deps, state, attempt, provider)
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
        return await record_created(deps, state, attempt, matching[0], action_id=None, adopted=True)
    if found:
        # Another server has the name. Either all are being deleted, or one may not be deleted: then an operator has to decide.
        return SERVER_STILL_THERE if len(extras) == len(found) else UNACCOUNTED
    return await create_server(deps, state, attempt, first=False)


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
                # Without an event, a deletion was requested, or the attempt has failed, while the agent was asked.
                if outcome.events:
                    _log.info("instance_ready", instance_id=str(state.id))
                return Continue(state=outcome.state)
    if await boot_remaining_s(deps, step.attempt) <= 0:
        return await fail_attempt(deps, state, step.attempt, code="attempt_unverified", retryable=True)
    return Retry(code="attempt_unverified", delay_s=0.5)
