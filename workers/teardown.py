"""The teardown steps of an instance. Each is retried until it succeeds, so that nothing is left at the provider to be paid for."""

from __future__ import annotations

import asyncio

import structlog

from events import commands as c
from events.errors import VersionConflict
from events.saga import TearDown
from events.state import Attempt, Instance
from hydracore.agent.messages import Drained
from hydracore.agent_client import AGENT_PORT, AgentAddress, AgentClientError
from hydracore.tokens import held_control_token
from workers.deps import Deps
from workers.providers.base import ProviderError, ProviderRefused
from workers.removal import SERVER_STILL_THERE, remove_servers
from workers.steps import Continue, Retry, StepResult, Wait, retry_for
from workers.timing import wait_for_gap

_log = structlog.get_logger(__name__)

#: The longest that open chats and usage that is not yet reported may delay a deletion, and the pause between two polls.
DRAIN_S_MAX = 10.0
DRAIN_POLL_S = 1.0

#: How long an agent that does not answer is asked again, if it was healthy until now.
ANSWER_S_MAX = 5.0

#: How long the agent then has to cut open chats and report their usage. Reporting alone takes less.
CUT_S_MAX = 5.0

#: The pause between the first and the second look that finds no server, if the server's id was known.
ABSENCE_GAP_S = 1.0


async def tear_down(deps: Deps, state: Instance, step: TearDown) -> StepResult:
    """Carry out one step of `events.state.TEARDOWN_STEPS` and record it."""
    waits: StepResult | None = None
    match step.step:
        case "drained":
            waits = await _drain(deps, state)
        case "server_deleted" | "absence_verified":
            waits = await _delete_server(deps, state, second_look=step.step == "absence_verified")
        case "artifacts_deleted":
            await deps.schedule.delete_working_data(state.id)
        case "key_revoked" | "addresses_freed":
            # Nothing to do outside the log: the event that is appended below revokes the key or frees the addresses.
            pass
    if waits is not None:
        return waits
    command = c.RecordTeardownStep(at_ms=deps.now_ms(), step=step.step)
    if step.step == "absence_verified":
        # Appended at the version that was checked: if a server was recorded since, its absence was not verified.
        outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    else:
        outcome = await deps.store.execute(state.id, command, deps.origin(state.id))
    return Continue(state=outcome.state)


async def _drain(deps: Deps, state: Instance) -> StepResult | None:
    """Have the agent end its chats and report their usage. Returns None once it has, or once its time is over.

    An agent that does not answer is skipped, unless it was healthy until now: then only an answer may have been lost, and it is asked
    again. Chats that are still open when the time is over are cut, and their usage is reported before the server is deleted.

    The time counts from the previous step, the revocation of the key, which a worker recorded. It does not count from the deletion
    request: another machine's clock dated that, and it may have waited for a worker. The agent is asked at least once, however late it
    is. If the time of the previous step is in the future, this function sleeps for the whole time instead.
    """
    agent = state.agent
    if agent is None or agent.control_key_id is None or state.vpn_ip is None:
        return None
    token = held_control_token(
        deps.settings.master_keys, state.id, agent.control_key_id, key_hash=agent.control_key_hash
    )
    address = AgentAddress(state.vpn_ip, AGENT_PORT, token)
    limit_s = DRAIN_S_MAX
    try:
        if _is_drained(await deps.agent_client.drain(address)):
            return None
    except AgentClientError:
        if state.health != "healthy":
            return None
        limit_s = ANSWER_S_MAX
    assert state.key_revoked_ms is not None, "the key is revoked before the drain"
    passed_s = (deps.now_ms() - state.key_revoked_ms) / 1000
    if 0 <= passed_s <= limit_s:
        return Wait(delay_s=DRAIN_POLL_S)
    if passed_s < 0:
        await asyncio.sleep(limit_s)
    await _cut_chats(deps, state, address)
    return None


async def _cut_chats(deps: Deps, state: Instance, address: AgentAddress) -> None:
    """Have the agent cut open chats and report their usage. What it fails to report is lost with the server."""
    try:
        is_reported = _is_drained(await deps.agent_client.drain(address, cut=True, timeout_s=CUT_S_MAX))
    except AgentClientError:
        is_reported = False
    if not is_reported:
        _log.warning("usage_untold", instance_id=str(state.id))


def _is_drained(drained: Drained) -> bool:
    return not drained.active_connections and not drained.usage_unsent


async def _delete_server(deps: Deps, state: Instance, *, second_look: bool) -> StepResult | None:
    """Delete the instance's servers. Returns None once the provider shows none.

    The second look comes after a gap, so that it also finds the server of a create call that was still in flight at the first.
    """
    attempt = state.attempt
    if attempt is None:
        return None
    if not attempt.may_have_server:
        return None if second_look or not attempt.nothing_made else await _check_after_refusal(deps, state, attempt)
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return Retry(code="provider_not_configured")
    if second_look:
        # If no server id was recorded, the create call of a killed worker may still reach the provider.
        gap_s = ABSENCE_GAP_S if attempt.server_id is not None else deps.settings.provider_timeout_s
        waits = await wait_for_gap(deps, state, gap_s=gap_s)
        if waits is not None:
            return waits
    try:
        if await remove_servers(deps, state, provider):
            return SERVER_STILL_THERE
    except ProviderError as error:
        return retry_for(error)
    return None


async def _check_after_refusal(deps: Deps, state: Instance, attempt: Attempt) -> StepResult | None:
    """Look once for a server of an attempt whose create call the provider refused: it may have created one all the same.

    A provider that also refuses to list servers, or that is no longer configured, does not delay the deletion. The sweep then finds a
    server that it may have created.
    """
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return None
    try:
        return SERVER_STILL_THERE if await remove_servers(deps, state, provider) else None
    except ProviderRefused:
        return None
    except ProviderError as error:
        return retry_for(error)


async def finish_deletion(deps: Deps, state: Instance) -> StepResult:
    """Append the last event of the stream."""
    outcome = await deps.store.execute_at(
        state, state.id, c.CompleteDeletion(at_ms=deps.now_ms()), deps.origin(state.id)
    )
    _log.info("instance_deleted", instance_id=str(state.id))
    return Continue(state=outcome.state)


async def record_blocked(deps: Deps, state: Instance, *, code: str) -> int:
    """Record in the log why a deletion makes no progress. Returns the stream's version afterwards.

    The step is still retried, at the same times as without the alarm.
    """
    if state.teardown_step is None:
        return state.version
    command = c.BlockTeardown(at_ms=deps.now_ms(), step=state.teardown_step, code=code)
    try:
        outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    except VersionConflict:
        # The stream has changed, so the next step is decided from its new state first.
        return state.version
    if not outcome.events:
        return state.version
    _log.error("teardown_blocked", instance_id=str(state.id), step=command.step, code=code)
    # The alarm's event changes nothing for the step that is retried: its pause and its count of failures stay.
    await deps.schedule.keep_at_next_version(state.id, version=state.version)
    return state.version + 1
