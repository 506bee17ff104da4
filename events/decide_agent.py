"""Decisions about the agent on an instance's server: whether a message is from the current agent, and whether it is new."""

from __future__ import annotations

from uuid import UUID

from events import commands as c
from events import types as e
from events.errors import (
    AgentDraining,
    AttemptSuperseded,
    BootSuperseded,
    KeyNotPending,
    SequenceGap,
    TokenRefused,
)
from events.lifecycle import PROVISIONING, RUNNING
from events.state import Agent, Instance


def decide_agent(
    state: Instance, command: c.EnrolAgent | c.IssueAgentKey | c.AcknowledgeAgentKey | c.ReportBootstrap
) -> tuple[e.AnyEvent, ...]:
    """The events that `command` causes at `state`. Raises a subclass of `Rejected`."""
    if state.is_draining:
        if isinstance(command, c.ReportBootstrap):
            raise AgentDraining(state.id)
        # It can report the usage of its last chats only with a valid key. It may have to enrol and to get a key first.
    elif state.status not in {PROVISIONING, RUNNING}:
        raise AttemptSuperseded(state.id)
    match command:
        case c.EnrolAgent():
            return _enrol(state, command)
        case c.IssueAgentKey():
            return _issue_key(state, command)
        case c.AcknowledgeAgentKey():
            require_boot(state, command.boot_id)
            return _acknowledge(state, command.key_id, command.at_ms)
        case c.ReportBootstrap():
            reported = _report_bootstrap(state, command)
            if command.key_id is None:
                return reported
            return (*_acknowledge(state, command.key_id, command.at_ms), *reported)


def require_boot(state: Instance, boot_id: UUID) -> Agent:
    """The instance's agent, if `boot_id` is its current boot.

    Raises `AttemptSuperseded` if no agent has enrolled, and `BootSuperseded` for an earlier boot, or one that never enrolled.
    """
    agent = _bound_agent(state)
    if agent.boot_id != boot_id:
        raise BootSuperseded(state.id)
    return agent


def _bound_agent(state: Instance) -> Agent:
    if state.agent is None:
        raise AttemptSuperseded(state.id)
    return state.agent


def _require_attempt(state: Instance, number: int) -> None:
    attempt = state.attempt
    if attempt is None or attempt.number != number or attempt.failure is not None:
        raise AttemptSuperseded(state.id)


def _enrol(state: Instance, command: c.EnrolAgent) -> tuple[e.AnyEvent, ...]:
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
        # The token expires for the first use only: once it is bound to an agent, it is of no use without that agent's private key.
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


def _issue_key(state: Instance, command: c.IssueAgentKey) -> tuple[e.AnyEvent, ...]:
    _require_attempt(state, command.attempt)
    agent = require_boot(state, command.boot_id)
    if agent.key_acknowledged:
        raise KeyNotPending(state.id)
    if agent.key_id is not None:
        return ()
    return (
        e.AgentKeyIssued(
            at_ms=command.at_ms, attempt=command.attempt, key_id=command.key_id, key_hash=command.key_hash
        ),
    )


def _acknowledge(state: Instance, key_id: UUID, at_ms: int) -> tuple[e.AnyEvent, ...]:
    agent = _bound_agent(state)
    if agent.key_id != key_id:
        raise KeyNotPending(state.id)
    return () if agent.key_acknowledged else (e.AgentKeyAcknowledged(at_ms=at_ms, key_id=key_id),)


def _report_bootstrap(state: Instance, command: c.ReportBootstrap) -> tuple[e.AnyEvent, ...]:
    agent = require_boot(state, command.boot_id)
    if command.seq > agent.bootstrap_seq + 1:
        raise SequenceGap(state.id, expected_seq=agent.bootstrap_seq + 1)
    return tuple(
        e.BootstrapReported(
            at_ms=command.at_ms,
            boot_id=command.boot_id,
            seq=seq,
            stage=report.stage,
            level=report.level,
            message=report.message,
        )
        for seq, report in enumerate(command.reports, start=command.seq)
        if seq > agent.bootstrap_seq
    )
