"""What the events of the agent on an instance's server do to its state. See `events.evolve`."""

from __future__ import annotations

from events import types as e
from events.lifecycle import PROVISIONING
from events.state import BOOTSTRAP_STAGES, Agent, Instance

_RANK = {stage: rank for rank, stage in enumerate(BOOTSTRAP_STAGES)}

#: The most earlier boots that are kept, to tell a late callback of an old boot from one of a boot that never enrolled.
SUPERSEDED_BOOTS_KEPT = 16


def agent_enrolled(state: Instance, event: e.AgentEnrolled) -> None:
    agent = state.agent
    if agent is None:
        state.agent = Agent(signing_key=event.signing_key, vpn_key=event.vpn_key, boot_id=event.boot_id)
    else:
        # The same agent has booted again: its callbacks start at 1 again, and its acknowledged key stays valid.
        agent.superseded_boots = (*agent.superseded_boots, agent.boot_id)[-SUPERSEDED_BOOTS_KEPT:]
        agent.boot_id = event.boot_id
        agent.bootstrap_seq = 0
        agent.bootstrap_stage = None
    # The agent's contact proves that the server runs, so the provider need not be asked about it any more.
    assert state.attempt is not None, "no attempt yet"
    state.attempt.action_id = None
    if state.status == PROVISIONING:
        state.provisioning_stage = "bootstrapping"


def enrolment_contested(state: Instance, _event: e.EnrolmentContested) -> None:
    _agent(state).contested = True


def agent_key_issued(state: Instance, event: e.AgentKeyIssued) -> None:
    agent = _agent(state)
    agent.key_id = event.key_id
    agent.key_hash = event.key_hash
    agent.key_acknowledged = False


def agent_key_acknowledged(state: Instance, event: e.AgentKeyAcknowledged) -> None:
    agent = _agent(state)
    agent.key_acknowledged = True
    agent.control_key_id = event.key_id
    agent.control_key_hash = agent.key_hash


def agent_key_revoked(state: Instance, event: e.AgentKeyRevoked) -> None:
    agent = _agent(state)
    if event.reason == "deletion":
        agent.leaving_key_id = event.key_id
        agent.leaving_key_hash = agent.key_hash
    agent.key_id = None
    agent.key_hash = None
    agent.key_acknowledged = False


def bootstrap_reported(state: Instance, event: e.BootstrapReported) -> None:
    agent = _agent(state)
    stage = agent.bootstrap_stage
    if stage is None or _RANK[event.stage] > _RANK[stage]:
        agent.bootstrap_stage = stage = event.stage
    agent.bootstrap_seq = event.seq
    if state.status == PROVISIONING and stage == "healthy":
        state.provisioning_stage = "verifying"


def _agent(state: Instance) -> Agent:
    assert state.agent is not None, "no agent has enrolled"
    return state.agent
