"""Taking an instance down, step by step, each tried for ever, leaving nothing behind or billing."""

from __future__ import annotations

import asyncio

import structlog

from events import commands as c
from events.errors import VersionConflict
from events.saga import FinishDeletion, TearDown
from events.state import Attempt, Instance
from hydracore.agent.messages import Drained
from hydracore.tokens import held_control_token
from hydracore.vps import AGENT_PORT, AgentAddress, VpsError
from workers.deps import Deps
from workers.providers.base import ProviderError, ProviderRefused
from workers.removal import STILL_THERE, remove_servers
from workers.steps import Moved, Result, Trouble, Wait, trouble
from workers.timing import settle

_log = structlog.get_logger(__name__)

#: How long open chats, and usage that is not told yet, may hold up a deletion, and the pause between two looks.
DRAIN_S_MAX = 10.0
DRAIN_LOOK_S = 1.0

#: How long an agent that was well a moment ago is asked again where it does not answer.
ANSWER_S_MAX = 5.0

#: How long the agent then has to cut what is open and to tell what it cost. More than it takes by itself for telling.
CUT_S_MAX = 5.0

#: Between the first and the second look that finds no server, where its id was known.
ABSENCE_GAP_S = 1.0


async def tear_down(deps: Deps, state: Instance, step: TearDown) -> Result:
    """Do one step of `events.state.TEARDOWN_STEPS` and record it."""
    waits: Result | None = None
    match step.step:
        case "drained":
            waits = await _drain(deps, state)
        case "server_deleted" | "absence_verified":
            waits = await _delete_server(deps, state, second_look=step.step == "absence_verified")
        case "artifacts_deleted":
            await deps.attention.forget(state.id)
        case "key_revoked" | "addresses_freed":
            # The decision itself is the effect: the key is revoked, the addresses are freed, by the event.
            pass
    if waits is not None:
        return waits
    command = c.RecordTeardownStep(at_ms=deps.now_ms(), step=step.step)
    if step.step == "absence_verified":
        # At the version that was looked at: a server that was recorded since is not absent.
        outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    else:
        outcome = await deps.store.execute(state.id, command, deps.origin(state.id))
    return Moved(state=outcome.state)


async def _drain(deps: Deps, state: Instance) -> Result | None:
    """Have the agent end its chats, and tell what they cost. One that has been silent for long has none to end; of one that
    was well a moment ago an answer may have been lost, and it is asked again.

    Chats that are open when their time is over are cut, and metered before the server goes. The time counts from a worker's own
    step, not from the request, which another clock has written and which may have waited for us. However late it is, the agent
    is asked. Where the step was taken by a clock ahead of ours, the whole time passes here.
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
        if _is_done(await deps.vps.drain(address)):
            return None
    except VpsError:
        if state.health != "healthy":
            return None
        limit_s = ANSWER_S_MAX
    assert state.key_revoked_ms is not None, "the key is revoked before the drain"
    passed_s = (deps.now_ms() - state.key_revoked_ms) / 1000
    if 0 <= passed_s <= limit_s:
        return Wait(delay_s=DRAIN_LOOK_S)
    if passed_s < 0:
        await asyncio.sleep(limit_s)
    await _cut(deps, state, address)
    return None


async def _cut(deps: Deps, state: Instance, address: AgentAddress) -> None:
    """Have the agent end what is still open and tell what it cost. What is not told by then goes with the server."""
    try:
        is_told = _is_done(await deps.vps.drain(address, cut=True, timeout_s=CUT_S_MAX))
    except VpsError:
        is_told = False
    if not is_told:
        _log.warning("usage_untold", instance_id=str(state.id))


def _is_done(drained: Drained) -> bool:
    return not drained.active_connections and not drained.usage_unsent


async def _delete_server(deps: Deps, state: Instance, *, second_look: bool) -> Result | None:
    """Nothing is left at the provider; said only after two looks, the second late enough for a create on its way."""
    attempt = state.attempt
    if attempt is None:
        return None
    if not attempt.may_have_server:
        return None if second_look or not attempt.nothing_made else await _look_after_refusal(deps, state, attempt)
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return Trouble(code="provider_not_configured")
    if second_look:
        # With no id on record, a create call of a worker that was killed may still reach the provider.
        gap_s = ABSENCE_GAP_S if attempt.server_id is not None else deps.settings.provider_timeout_s
        waits = await settle(deps, state, gap_s=gap_s)
        if waits is not None:
            return waits
    try:
        if await remove_servers(deps, state, provider):
            return STILL_THERE
    except ProviderError as error:
        return trouble(error)
    return None


async def _look_after_refusal(deps: Deps, state: Instance, attempt: Attempt) -> Result | None:
    """Look once for a server of an attempt whose create the provider refused: it may have made one all the same.

    A provider that also refuses to list servers, or is no longer set up, does not hold up the deletion. What it may have made is left
    to the sweep.
    """
    provider = deps.providers.get(attempt.provider)
    if provider is None:
        return None
    try:
        return STILL_THERE if await remove_servers(deps, state, provider) else None
    except ProviderRefused:
        return None
    except ProviderError as error:
        return trouble(error)


async def finish(deps: Deps, state: Instance, _step: FinishDeletion) -> Result:
    """The last event of the stream."""
    outcome = await deps.store.execute_at(
        state, state.id, c.CompleteDeletion(at_ms=deps.now_ms()), deps.origin(state.id)
    )
    _log.info("instance_deleted", instance_id=str(state.id))
    return Moved(state=outcome.state)


async def sound_alarm(deps: Deps, state: Instance, *, code: str) -> int:
    """Say in the log why a deletion does not get on. It is tried on all the same, when it would have been without. The version since."""
    if state.teardown_step is None:
        return state.version
    command = c.BlockTeardown(at_ms=deps.now_ms(), step=state.teardown_step, code=code)
    try:
        outcome = await deps.store.execute_at(state, state.id, command, deps.origin(state.id))
    except VersionConflict:
        # Whatever has happened meanwhile is to be looked at first.
        return state.version
    if not outcome.events:
        return state.version
    _log.error("teardown_blocked", instance_id=str(state.id), step=command.step, code=code)
    # The alarm changes nothing of what was tried: neither the pause nor the count of failures begins anew.
    await deps.attention.carry(state.id, version=state.version)
    return state.version + 1
