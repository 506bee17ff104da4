"""The one fold: what each event does to an instance's state. Pure, total, and the same for writing, replay and rebuild."""

from __future__ import annotations

from typing import assert_never
from uuid import UUID

from msgspec.structs import replace

from events import types as e
from events.evolve_use import apply_use
from events.lifecycle import DELETED, DELETING, ERROR, FAILED, PROVISIONING, RUNNING
from events.state import BOOTSTRAP_STAGES, Agent, Attempt, Instance


def evolve(state: Instance | None, event: e.AnyEvent, *, stream_id: UUID) -> Instance:
    """The state after `event`. The first event of a stream is always `InstanceRequested`, and only the first."""
    if isinstance(event, e.InstanceRequested):
        assert state is None, "a stream begins once"
        return _requested(stream_id, event)
    assert state is not None, f"{type(event).__name__} before InstanceRequested"
    after = _apply(state, event)
    return replace(after, version=state.version + 1, updated_ms=event.at_ms)


def _requested(stream_id: UUID, event: e.InstanceRequested) -> Instance:
    return Instance(
        id=stream_id,
        version=1,
        tenant_id=event.tenant_id,
        customer_id=event.customer_id,
        idempotency_key=event.idempotency_key,
        region_id=event.region_id,
        tier_id=event.tier_id,
        tier_name=event.tier_name,
        preset_id=event.preset_id,
        runtime_type=event.runtime_type,
        workload_type=event.workload_type,
        capabilities=event.capabilities,
        agent_name=event.agent_name,
        manifest_id=event.manifest_id,
        recipe_id=event.recipe_id,
        website_template_slug=event.website_template_slug,
        workflow_slugs=event.workflow_slugs,
        customer_email=event.customer_email,
        user_display_name=event.user_display_name,
        created_ms=event.at_ms,
        updated_ms=event.at_ms,
    )


def _apply(state: Instance, event: e.AnyEvent) -> Instance:
    match event:
        case e.InstanceRequested():
            raise AssertionError("handled by evolve")
        case e.PlacementChosen() | e.ServerIntended() | e.ServerCreated() | e.ServerObserved() | e.ServerDiscarded():
            return _apply_to_server(state, event)
        case e.AddressReserved():
            return replace(state, hostname=event.hostname, vpn_ip=event.vpn_ip, provisioning_stage="network")
        case e.AttemptFailed():
            return _attempt_failed(state, event)
        case e.ProvisioningFailed():
            return replace(state, status=FAILED, error_code=event.code)
        case (
            e.AgentEnrolled()
            | e.EnrolmentContested()
            | e.AgentKeyIssued()
            | e.AgentKeyAcknowledged()
            | e.AgentKeyRevoked()
            | e.BootstrapReported()
        ):
            return _apply_to_agent(state, event)
        case e.InstanceReady():
            return replace(state, status=RUNNING, provisioning_stage="ready", health="healthy", error_code=None)
        case e.HealthChanged():
            return replace(state, health=event.health)
        case e.ServerVanished():
            attempt = replace(_attempt(state), server_status="vanished", discarded=True)
            return replace(state, status=ERROR, attempt=attempt, error_code="server_vanished", health="unreachable")
        case (
            e.ConfigChanged()
            | e.PlatformConfigPatched()
            | e.ModelPolicyChanged()
            | e.ConsentChanged()
            | e.UpdatesApplied()
            | e.ConversationsAccessed()
            | e.UsageRecorded()
        ):
            return apply_use(state, event)
        case e.DeletionRequested():
            return replace(state, status=DELETING, deletion_requested_ms=event.at_ms)
        case e.TeardownStepDone():
            return _teardown_step(state, event)
        case e.TeardownBlocked():
            return replace(state, teardown_blocked=event.step, error_code=event.code)
        case e.InstanceDeleted():
            return replace(state, status=DELETED, health=None, error_code=None, deleted_ms=event.at_ms)
        case _:
            assert_never(event)


def _attempt(state: Instance) -> Attempt:
    assert state.attempt is not None, "no attempt yet"
    return state.attempt


def _apply_to_server(
    state: Instance,
    event: e.PlacementChosen | e.ServerIntended | e.ServerCreated | e.ServerObserved | e.ServerDiscarded,
) -> Instance:
    match event:
        case e.PlacementChosen():
            attempt = Attempt(
                number=event.attempt,
                provider=event.provider,
                server_type=event.server_type,
                location=event.location,
                image=event.image,
            )
            return replace(
                state, status=PROVISIONING, provisioning_stage="placement", attempt=attempt, agent=None, error_code=None
            )
        case e.ServerIntended():
            attempt = replace(
                _attempt(state),
                server_name=event.server_name,
                enrol_nonce=event.enrol_nonce,
                enrol_token_hash=event.enrol_token_hash,
                enrol_expires_ms=event.enrol_expires_ms,
                intended_ms=event.at_ms,
                deadline_ms=event.deadline_ms,
            )
            return replace(state, provisioning_stage="server_intended", attempt=attempt)
        case e.ServerCreated():
            attempt = replace(
                _attempt(state),
                server_id=event.server_id,
                action_id=event.action_id if state.agent is None else None,
                ipv4=event.ipv4,
                ipv6=event.ipv6,
            )
            # The agent may have enrolled before the create call was answered: a stage never goes back.
            stage = "server_created" if state.agent is None else state.provisioning_stage
            return replace(state, provisioning_stage=stage, attempt=attempt)
        case e.ServerObserved():
            attempt = replace(_attempt(state), server_status=event.server_status, action_id=None)
            stage = "server_running" if state.agent is None else state.provisioning_stage
            return replace(state, provisioning_stage=stage, attempt=attempt)
        case e.ServerDiscarded():
            attempt = replace(_attempt(state), discarded=True, server_status="deleted", action_id=None)
            return replace(state, attempt=attempt)


def _attempt_failed(state: Instance, event: e.AttemptFailed) -> Instance:
    attempt = replace(_attempt(state), failure=event.code, nothing_made=event.nothing_made, action_id=None)
    placement = (attempt.provider, attempt.server_type, attempt.location)
    return replace(
        state,
        attempt=attempt,
        failed_placements=(*state.failed_placements, placement),
        error_code=event.code,
        retryable=event.retryable,
    )


def _agent(state: Instance) -> Agent:
    assert state.agent is not None, "no agent has enrolled"
    return state.agent


def _apply_to_agent(
    state: Instance,
    event: e.AgentEnrolled
    | e.EnrolmentContested
    | e.AgentKeyIssued
    | e.AgentKeyAcknowledged
    | e.AgentKeyRevoked
    | e.BootstrapReported,
) -> Instance:
    match event:
        case e.AgentEnrolled():
            return _enrolled(state, event)
        case e.EnrolmentContested():
            return replace(state, agent=replace(_agent(state), contested=True))
        case e.AgentKeyIssued():
            agent = replace(_agent(state), key_id=event.key_id, key_hash=event.key_hash, key_acknowledged=False)
            return replace(state, agent=agent)
        case e.AgentKeyAcknowledged():
            agent = replace(_agent(state), key_acknowledged=True, control_key_id=event.key_id)
            return replace(state, agent=agent)
        case e.AgentKeyRevoked():
            agent = replace(_agent(state), key_id=None, key_hash=None, key_acknowledged=False)
            return replace(state, agent=agent)
        case e.BootstrapReported():
            return _bootstrap_reported(state, event)


def _enrolled(state: Instance, event: e.AgentEnrolled) -> Instance:
    if state.agent is None:
        agent = Agent(signing_key=event.signing_key, vpn_key=event.vpn_key, boot_id=event.boot_id)
    else:
        # Same agent, new boot: its callbacks start again at 1; its acknowledged key stays good.
        agent = replace(
            state.agent,
            boot_id=event.boot_id,
            superseded_boots=(*state.agent.superseded_boots, state.agent.boot_id)[-SUPERSEDED_BOOTS_KEPT:],
            bootstrap_seq=0,
            bootstrap_stage=None,
        )
    stage = "bootstrapping" if state.status == PROVISIONING else state.provisioning_stage
    # The agent's contact proves that the server runs: nobody needs to ask the provider about it any more.
    attempt = replace(_attempt(state), action_id=None)
    return replace(state, agent=agent, attempt=attempt, provisioning_stage=stage)


#: How many earlier boots are remembered, to tell a late callback of an old boot from one that never enrolled.
SUPERSEDED_BOOTS_KEPT = 16


def _bootstrap_reported(state: Instance, event: e.BootstrapReported) -> Instance:
    agent = _agent(state)
    stage = agent.bootstrap_stage
    if stage is None or BOOTSTRAP_STAGES.index(event.stage) > BOOTSTRAP_STAGES.index(stage):
        stage = event.stage
    after = replace(state, agent=replace(agent, bootstrap_seq=event.seq, bootstrap_stage=stage))
    if state.status == PROVISIONING and stage == "healthy":
        return replace(after, provisioning_stage="verifying")
    return after


def _teardown_step(state: Instance, event: e.TeardownStepDone) -> Instance:
    after = replace(state, teardown_done=(*state.teardown_done, event.step), teardown_blocked=None, error_code=None)
    if event.step == "absence_verified" and state.attempt is not None:
        attempt = replace(state.attempt, discarded=True, server_status="deleted", action_id=None)
        return replace(after, attempt=attempt)
    if event.step == "addresses_freed":
        return replace(after, addresses_released_ms=event.at_ms)
    return after
