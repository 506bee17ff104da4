"""What a command means for an instance: the events it causes, none when it is already so, or a refusal.

Pure: the same state and command always give the same answer. A repeat of what has happened gives no events; a late or
foreign message gives no events or a refusal that its sender can act on.
"""

from __future__ import annotations

from typing import assert_never
from uuid import UUID

import msgspec

from events import commands as c
from events import types as e
from events.decide_use import decide_use
from events.errors import (
    AttemptSuperseded,
    BootSuperseded,
    KeyNotPending,
    NotFound,
    Rejected,
    SequenceGap,
    TokenRefused,
    TransitionRefused,
)
from events.lifecycle import DELETED, DELETING, PENDING, PROVISIONING, RUNNING, destination
from events.state import BOOTSTRAP_STAGES, TEARDOWN_STEPS, Agent, Instance

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
            return _decide_agent(state, command)
        case (
            c.ChangeConfig()
            | c.PatchPlatformConfig()
            | c.ChangeModelPolicy()
            | c.ChangeConsent()
            | c.RecordUpdatesApplied()
            | c.RecordConversationsAccess()
            | c.RecordUsage()
            | c.RotateAgentKey()
        ):
            return decide_use(state, command)
        case c.RequestDeletion() | c.RecordTeardownStep() | c.BlockTeardown() | c.CompleteDeletion():
            return _decide_teardown(state, command)
        case _:
            return _decide_server(state, command)


def _request(command: c.RequestInstance) -> Events:
    return (e.InstanceRequested(**msgspec.structs.asdict(command)),)


def _require(state: Instance, trigger: str) -> None:
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
            if not _is_open_attempt(state, command.attempt) or _attempt_status(state) == "running":
                return ()
            return (e.ServerObserved(at_ms=command.at_ms, attempt=command.attempt, server_status="running"),)
        case c.FailAttempt():
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
        case c.RecordServerDiscarded():
            attempt = state.attempt
            if attempt is None or attempt.number != command.attempt or attempt.discarded or attempt.failure is None:
                return ()
            return (e.ServerDiscarded(at_ms=command.at_ms, attempt=command.attempt),)
        case c.GiveUp():
            if state.status == PENDING:
                # Not even one placement: the lifecycle goes through provisioning all the same.
                raise TransitionRefused(state.id, trigger="fail", status=state.status)
            _require(state, "fail")
            return (e.ProvisioningFailed(at_ms=command.at_ms, code=command.code),)
        case c.MarkReady():
            if not _is_open_attempt(state, command.attempt):
                return ()
            return (e.InstanceReady(at_ms=command.at_ms, attempt=command.attempt),)
        case c.ChangeHealth():
            if state.status != RUNNING or state.health == command.health:
                return ()
            return (e.HealthChanged(at_ms=command.at_ms, health=command.health),)
        case c.ReportServerVanished():
            return _vanished(state, command)
        case _:
            assert_never(command)


def _is_open_attempt(state: Instance, number: int) -> bool:
    """Whether `number` is the attempt being provisioned right now; anything about another one is late."""
    attempt = state.attempt
    return state.status == PROVISIONING and attempt is not None and attempt.number == number and attempt.failure is None


def _attempt_status(state: Instance) -> str | None:
    return None if state.attempt is None else state.attempt.server_status


def _plan(state: Instance, command: c.PlanServer) -> Events:
    previous = state.attempt
    if state.status == PENDING:
        _require(state, "provision")
    elif state.status != PROVISIONING or previous is None or not previous.discarded:
        raise TransitionRefused(state.id, trigger="plan_another_server", status=state.status)
    expected = 1 if previous is None else previous.number + 1
    if command.attempt != expected:
        raise Rejected(state.id, f"Attempt {command.attempt} is not the next one ({expected})")
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


# --- the agent -------------------------------------------------------------------------------------------------------


def _decide_agent(
    state: Instance, command: c.EnrolAgent | c.IssueAgentKey | c.AcknowledgeAgentKey | c.ReportBootstrap
) -> Events:
    if state.status not in {PROVISIONING, RUNNING}:
        raise AttemptSuperseded(state.id)
    match command:
        case c.EnrolAgent():
            return _enrol(state, command)
        case c.IssueAgentKey():
            return _issue_key(state, command)
        case c.AcknowledgeAgentKey():
            agent = _bound_agent(state)
            if agent.key_id != command.key_id:
                raise KeyNotPending(state.id)
            if agent.key_acknowledged:
                return ()
            return (e.AgentKeyAcknowledged(at_ms=command.at_ms, key_id=command.key_id),)
        case c.ReportBootstrap():
            return _report_bootstrap(state, command)


def _bound_agent(state: Instance) -> Agent:
    if state.agent is None:
        raise AttemptSuperseded(state.id)
    return state.agent


def _require_attempt(state: Instance, number: int) -> None:
    attempt = state.attempt
    if attempt is None or attempt.number != number or attempt.failure is not None:
        raise AttemptSuperseded(state.id)


def _enrol(state: Instance, command: c.EnrolAgent) -> Events:
    _require_attempt(state, command.attempt)
    attempt, agent = state.attempt, state.agent
    assert attempt is not None
    if attempt.enrol_token_hash != command.token_hash:
        raise TokenRefused(state.id)
    enrolled = e.AgentEnrolled(
        at_ms=command.at_ms,
        attempt=command.attempt,
        boot_id=command.boot_id,
        signing_key=command.signing_key,
        vpn_key=command.vpn_key,
    )
    if agent is None:
        # The time limit is for the first use only: a bound token proves nothing without the agent's private key.
        if command.at_ms > attempt.enrol_expires_ms:
            raise TokenRefused(state.id)
        return (enrolled,)
    if (agent.signing_key, agent.vpn_key) != (command.signing_key, command.vpn_key):
        if agent.contested:
            return ()
        return (e.EnrolmentContested(at_ms=command.at_ms, attempt=command.attempt, boot_id=command.boot_id),)
    if command.boot_id in agent.superseded_boots:
        raise BootSuperseded(state.id)
    return () if agent.boot_id == command.boot_id else (enrolled,)


def _issue_key(state: Instance, command: c.IssueAgentKey) -> Events:
    _require_attempt(state, command.attempt)
    agent = _bound_agent(state)
    if agent.boot_id != command.boot_id:
        raise BootSuperseded(state.id)
    if agent.key_acknowledged:
        raise KeyNotPending(state.id)
    if agent.key_id is not None:
        return ()
    return (
        e.AgentKeyIssued(
            at_ms=command.at_ms, attempt=command.attempt, key_id=command.key_id, key_hash=command.key_hash
        ),
    )


def _report_bootstrap(state: Instance, command: c.ReportBootstrap) -> Events:
    agent = _bound_agent(state)
    if agent.boot_id != command.boot_id:
        raise BootSuperseded(state.id)
    if command.stage not in BOOTSTRAP_STAGES:
        raise Rejected(state.id, f"Unknown stage; use one of {', '.join(BOOTSTRAP_STAGES)}")
    if command.seq <= agent.bootstrap_seq:
        return ()
    if command.seq != agent.bootstrap_seq + 1:
        raise SequenceGap(state.id, expected_seq=agent.bootstrap_seq + 1)
    return (
        e.BootstrapReported(
            at_ms=command.at_ms,
            boot_id=command.boot_id,
            seq=command.seq,
            stage=command.stage,
            level=command.level,
            message=command.message,
        ),
    )


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
            if (state.teardown_blocked, state.error_code) == (command.step, command.code):
                return ()
            return (e.TeardownBlocked(at_ms=at_ms, step=command.step, code=command.code),)
        case c.CompleteDeletion():
            if state.teardown_done != TEARDOWN_STEPS:
                raise TransitionRefused(state.id, trigger="finish_deletion", status=state.status)
            return (e.InstanceDeleted(at_ms=at_ms),)


def _teardown_step(state: Instance, command: c.RecordTeardownStep) -> Events:
    if command.step in state.teardown_done:
        return ()
    expected = TEARDOWN_STEPS[len(state.teardown_done)]
    if command.step != expected:
        raise Rejected(state.id, f"Teardown step {command.step} before {expected}")
    done = e.TeardownStepDone(at_ms=command.at_ms, step=command.step)
    agent = state.agent
    if command.step == "key_revoked" and agent is not None and agent.key_id is not None:
        return (e.AgentKeyRevoked(at_ms=command.at_ms, key_id=agent.key_id, reason="deletion"), done)
    return (done,)
