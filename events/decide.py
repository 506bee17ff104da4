"""Decides a command: returns the events that it causes, none if it has already happened, or refuses it.

Pure: the same state and command always give the same answer. A repeated command gives no events; a late message, or one of another
attempt, gives no events or a refusal that its sender can act on.
"""

from __future__ import annotations

from typing import assert_never
from uuid import UUID

import msgspec

from events import commands as c
from events import types as e
from events.decide_agent import decide_agent
from events.decide_use import decide_use
from events.errors import NotFound, Rejected, TransitionRefused
from events.lifecycle import DELETED, DELETING, PENDING, PROVISIONING, RUNNING, Trigger, destination
from events.state import ATTEMPTS_MAX, Instance

Events = tuple[e.AnyEvent, ...]


def decide(state: Instance | None, command: c.AnyCommand, *, stream_id: UUID) -> Events:
    """The events that `command` causes at `state`.

    Raises a subclass of `Rejected` where the sender must learn that it cannot be done.
    """
    if isinstance(command, c.RequestInstance):
        return _request(command) if state is None else ()
    if state is None:
        raise NotFound(stream_id)
    match command:
        case c.EnrolAgent() | c.IssueAgentKey() | c.AcknowledgeAgentKey() | c.ReportBootstrap():
            return decide_agent(state, command)
        case (
            c.ChangeConfig()
            | c.PatchPlatformConfig()
            | c.ChangeModelPolicy()
            | c.ChangeConsent()
            | c.RequestUpdates()
            | c.RecordUpdatesApplied()
            | c.RecordUpdatesFailed()
            | c.RecordConversationsAccess()
            | c.RecordUsage()
            | c.RotateAgentKey()
        ):
            return decide_use(state, command)
        case c.RequestDeletion() | c.RecordTeardownStep() | c.BlockTeardown() | c.CompleteDeletion():
            return _decide_teardown(state, command)
        case c.EraseCustomer():
            # In every status: sealed fields stay in the history of a deleted instance, too.
            return () if state.erased_ms is not None else (e.CustomerErased(at_ms=command.at_ms),)
        case _:
            return _decide_server(state, command)


def _request(command: c.RequestInstance) -> Events:
    return (e.InstanceRequested(**msgspec.structs.asdict(command)),)


def _require(state: Instance, trigger: Trigger) -> None:
    if destination(trigger, source=state.status) is None:
        raise TransitionRefused(state.id, trigger=trigger, status=state.status)


# --- the server ------------------------------------------------------------------------------------------------------


def _decide_server(
    state: Instance,
    command: c.PlanServer
    | c.RecordServerCreated
    | c.RecordServerRunning
    | c.FailAttempt
    | c.RecordServerDiscarded
    | c.GiveUp
    | c.MarkReady
    | c.ChangeHealth
    | c.ReportServerVanished,
) -> Events:
    match command:
        case c.PlanServer():
            return _plan(state, command)
        case c.RecordServerCreated():
            return _server_created(state, command)
        case c.RecordServerRunning():
            # The action is no longer awaited once the server was seen running or its agent has enrolled.
            if not _is_open_attempt(state, command.attempt) or not _awaits_action(state):
                return ()
            return (e.ServerObserved(at_ms=command.at_ms, attempt=command.attempt, server_status="running"),)
        case c.FailAttempt():
            return _attempt_failed(state, command)
        case c.RecordServerDiscarded():
            attempt = state.attempt
            if attempt is None or attempt.number != command.attempt or attempt.discarded or attempt.failure is None:
                return ()
            return (e.ServerDiscarded(at_ms=command.at_ms, attempt=command.attempt),)
        case c.GiveUp():
            return _given_up(state, command)
        case c.MarkReady():
            return _ready(state, command)
        case c.ChangeHealth():
            if state.status != RUNNING or state.health == command.health:
                return ()
            return (e.HealthChanged(at_ms=command.at_ms, health=command.health),)
        case c.ReportServerVanished():
            return _vanished(state, command)
        case _:
            assert_never(command)


def _is_open_attempt(state: Instance, number: int) -> bool:
    """Whether `number` is the attempt that is being provisioned now. A message about any other attempt is late."""
    attempt = state.attempt
    return state.status == PROVISIONING and attempt is not None and attempt.number == number and attempt.failure is None


def _awaits_action(state: Instance) -> bool:
    return state.attempt is not None and state.attempt.action_id is not None


def _server_id(state: Instance) -> str | None:
    return None if state.attempt is None else state.attempt.server_id


def _plan(state: Instance, command: c.PlanServer) -> Events:
    previous = state.attempt
    if state.status == PENDING:
        _require(state, "provision")
    elif state.status != PROVISIONING or previous is None or not previous.discarded:
        raise TransitionRefused(state.id, trigger="plan_another_server", status=state.status)
    expected = 1 if previous is None else previous.number + 1
    if command.attempt != expected:
        raise Rejected(state.id, f"Attempt {command.attempt} is not the next one ({expected})")
    if command.attempt > ATTEMPTS_MAX or not state.retryable:
        raise TransitionRefused(state.id, trigger="plan_another_server", status=state.status)
    at_ms = command.at_ms
    placement = e.PlacementChosen(
        at_ms=at_ms,
        attempt=command.attempt,
        provider=command.provider,
        server_type=command.server_type,
        location=command.location,
        image=command.image,
    )
    intent = e.ServerIntended(
        at_ms=at_ms,
        attempt=command.attempt,
        server_name=command.server_name,
        enrol_nonce=command.enrol_nonce,
        enrol_token_hash=command.enrol_token_hash,
        enrol_expires_ms=command.enrol_expires_ms,
        deadline_ms=command.deadline_ms,
    )
    if state.vpn_ip is not None:
        return (placement, intent)
    addresses = e.AddressReserved(at_ms=at_ms, hostname=command.hostname, vpn_ip=command.vpn_ip)
    return (placement, addresses, intent)


def _server_created(state: Instance, command: c.RecordServerCreated) -> Events:
    attempt = state.attempt
    if attempt is None or attempt.number != command.attempt or attempt.server_id is not None or attempt.discarded:
        return ()
    if state.status not in {PROVISIONING, DELETING}:
        return ()
    return (
        e.ServerCreated(
            at_ms=command.at_ms,
            attempt=command.attempt,
            server_id=command.server_id,
            ipv4=command.ipv4,
            ipv6=command.ipv6,
            action_id=command.action_id,
            adopted=command.adopted,
        ),
    )


def _attempt_failed(state: Instance, command: c.FailAttempt) -> Events:
    if not _is_open_attempt(state, command.attempt):
        return ()
    return (
        e.AttemptFailed(
            at_ms=command.at_ms,
            attempt=command.attempt,
            code=command.code,
            retryable=command.retryable,
            nothing_made=command.nothing_made,
        ),
    )


def _given_up(state: Instance, command: c.GiveUp) -> Events:
    _require(state, "fail")
    if state.attempt is not None and state.attempt.may_have_server:
        # Nothing looks for the server of a failed instance, so it must be gone before.
        raise TransitionRefused(state.id, trigger="fail_with_a_server", status=state.status)
    return (e.ProvisioningFailed(at_ms=command.at_ms, code=command.code),)


def _ready(state: Instance, command: c.MarkReady) -> Events:
    if not _is_open_attempt(state, command.attempt):
        return ()
    if state.agent is None or _server_id(state) is None:
        # A running instance is monitored by its server's id and its agent's heartbeats, so both must be known.
        raise TransitionRefused(state.id, trigger="become_ready_unseen", status=state.status)
    return (e.InstanceReady(at_ms=command.at_ms, attempt=command.attempt),)


def _vanished(state: Instance, command: c.ReportServerVanished) -> Events:
    attempt = state.attempt
    if attempt is None or attempt.number != command.attempt or attempt.server_id != command.server_id:
        return ()
    if state.status == RUNNING:
        return (e.ServerVanished(at_ms=command.at_ms, attempt=command.attempt, server_id=command.server_id),)
    if _is_open_attempt(state, command.attempt):
        code = "server_vanished"
        return (e.AttemptFailed(at_ms=command.at_ms, attempt=command.attempt, code=code, retryable=True),)
    return ()


# --- the teardown ----------------------------------------------------------------------------------------------------


def _decide_teardown(
    state: Instance, command: c.RequestDeletion | c.RecordTeardownStep | c.BlockTeardown | c.CompleteDeletion
) -> Events:
    at_ms = command.at_ms
    if isinstance(command, c.RequestDeletion):
        if state.status in {DELETING, DELETED}:
            return ()
        _require(state, "delete")
        return (e.DeletionRequested(at_ms=at_ms, reason=command.reason),)
    if state.status != DELETING:
        return ()
    match command:
        case c.RecordTeardownStep():
            return _teardown_step(state, command)
        case c.BlockTeardown():
            known = (state.teardown_blocked, state.error_code) == (command.step, command.code)
            if known or command.step != state.teardown_step:
                return ()
            return (e.TeardownBlocked(at_ms=at_ms, step=command.step, code=command.code),)
        case c.CompleteDeletion():
            if state.teardown_step is not None:
                raise TransitionRefused(state.id, trigger="finish_deletion", status=state.status)
            return (e.InstanceDeleted(at_ms=at_ms),)


def _teardown_step(state: Instance, command: c.RecordTeardownStep) -> Events:
    if command.step in state.teardown_done:
        return ()
    if command.step != state.teardown_step:
        raise Rejected(state.id, f"Teardown step {command.step} before {state.teardown_step}")
    done = e.TeardownStepDone(at_ms=command.at_ms, step=command.step)
    agent = state.agent
    # The first step revokes the key, and the end of the drain one that was issued meanwhile. Before other steps none is in force.
    if agent is not None and agent.key_id is not None:
        return (e.AgentKeyRevoked(at_ms=command.at_ms, key_id=agent.key_id, reason="deletion"), done)
    return (done,)
