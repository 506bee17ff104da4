"""The fold: what each event does to an instance's state. It is pure, total, and the same for appends, replays and rebuilds.

Each event type has a function that changes a draft of the state; a state that was returned is never changed. The function is looked up
in a table, because a rebuild folds millions of events, and matching thirty class patterns in turn would cost more than all its other
work. The table is checked against the closed union of events when this module is imported, so that an event type without a function
fails at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, get_args
from uuid import UUID

from events import types as e
from events.evolve_agent import (
    agent_enrolled,
    agent_key_acknowledged,
    agent_key_issued,
    agent_key_revoked,
    bootstrap_reported,
    enrolment_contested,
)
from events.evolve_use import config_changed, consent_changed, customer_erased, unchanged, usage_recorded
from events.lifecycle import DELETED, DELETING, ERROR, FAILED, PROVISIONING, RUNNING
from events.state import Attempt, Instance, PastAttempt


def evolve(state: Instance | None, event: e.AnyEvent, *, stream_id: UUID) -> Instance:
    """The state after `event`. The first event of a stream is always `InstanceRequested`, and only the first."""
    after = evolve_all(state, (event,), stream_id=stream_id)
    assert after is not None, "an event gives a state"
    return after


def evolve_all(state: Instance | None, events: Sequence[e.AnyEvent], *, stream_id: UUID) -> Instance | None:
    """The state after all of `events`: the same as with `evolve` one by one, at a fraction of the cost.

    No state between the first and the last is returned, so all events change one draft. Their functions may read all of it except the
    version and the time of the last change, which are set at the end.
    """
    if not events:
        return state
    if state is None:
        first = events[0]
        assert isinstance(first, e.InstanceRequested), f"{type(first).__name__} before InstanceRequested"
        draft = _requested(stream_id, first)
        events_left = events[1:]
    else:
        draft = _draft(state)
        events_left = events
    for event in events_left:
        _FOLDS[type(event)](draft, event)
    draft.version += len(events_left)
    draft.updated_ms = events[-1].at_ms
    return draft


def _draft(state: Instance) -> Instance:
    """A copy of `state` that shares nothing with it that is changed in place."""
    draft = copy.copy(state)
    if draft.attempt is not None:
        draft.attempt = copy.copy(draft.attempt)
    if draft.agent is not None:
        draft.agent = copy.copy(draft.agent)
    return draft


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


def _requested_again(_state: Instance, _event: e.InstanceRequested) -> None:
    raise AssertionError("a stream begins once")


def _attempt(state: Instance) -> Attempt:
    assert state.attempt is not None, "no attempt yet"
    return state.attempt


def _placement_chosen(state: Instance, event: e.PlacementChosen) -> None:
    if state.attempt is not None and state.attempt.enrol_token_hash is not None:
        signing_key = None if state.agent is None else state.agent.signing_key
        past = PastAttempt(enrol_token_hash=state.attempt.enrol_token_hash, signing_key=signing_key)
        state.past_attempts = (*state.past_attempts, past)
    state.attempt = Attempt(
        number=event.attempt,
        provider=event.provider,
        server_type=event.server_type,
        location=event.location,
        image=event.image,
    )
    state.status = PROVISIONING
    state.provisioning_stage = "placement"
    state.agent = None
    state.error_code = None


def _address_reserved(state: Instance, event: e.AddressReserved) -> None:
    state.hostname = event.hostname
    state.vpn_ip = event.vpn_ip
    state.provisioning_stage = "network"


def _server_intended(state: Instance, event: e.ServerIntended) -> None:
    attempt = _attempt(state)
    attempt.server_name = event.server_name
    attempt.enrol_nonce = event.enrol_nonce
    attempt.enrol_token_hash = event.enrol_token_hash
    attempt.enrol_expires_ms = event.enrol_expires_ms
    attempt.intended_ms = event.at_ms
    attempt.deadline_ms = event.deadline_ms
    state.provisioning_stage = "server_intended"


def _server_created(state: Instance, event: e.ServerCreated) -> None:
    attempt = _attempt(state)
    attempt.server_id = event.server_id
    attempt.action_id = event.action_id if state.agent is None else None
    attempt.ipv4 = event.ipv4
    attempt.ipv6 = event.ipv6
    # The agent may have enrolled before the create call was answered: a stage never goes back.
    if state.agent is None:
        state.provisioning_stage = "server_created"


def _server_observed(state: Instance, event: e.ServerObserved) -> None:
    attempt = _attempt(state)
    attempt.server_status = event.server_status
    attempt.action_id = None
    if state.agent is None:
        state.provisioning_stage = "server_running"


def _server_discarded(state: Instance, _event: e.ServerDiscarded) -> None:
    attempt = _attempt(state)
    attempt.discarded = True
    attempt.server_status = "deleted"
    attempt.action_id = None


def _attempt_failed(state: Instance, event: e.AttemptFailed) -> None:
    attempt = _attempt(state)
    attempt.failure = event.code
    attempt.nothing_made = event.nothing_made
    attempt.action_id = None
    placement = (attempt.provider, attempt.server_type, attempt.location)
    state.failed_placements = (*state.failed_placements, placement)
    state.error_code = event.code
    state.retryable = event.retryable


def _provisioning_failed(state: Instance, event: e.ProvisioningFailed) -> None:
    state.status = FAILED
    state.error_code = event.code


def _instance_ready(state: Instance, _event: e.InstanceReady) -> None:
    state.status = RUNNING
    state.provisioning_stage = "ready"
    state.health = "healthy"
    state.error_code = None


def _health_changed(state: Instance, event: e.HealthChanged) -> None:
    state.health = event.health


def _server_vanished(state: Instance, _event: e.ServerVanished) -> None:
    attempt = _attempt(state)
    # Not marked as discarded: the server may still exist, and the instance's deletion looks for it.
    attempt.server_status = "vanished"
    state.status = ERROR
    state.error_code = "server_vanished"
    state.health = "unreachable"


def _deletion_requested(state: Instance, event: e.DeletionRequested) -> None:
    state.status = DELETING
    state.deletion_requested_ms = event.at_ms


def _teardown_step_done(state: Instance, event: e.TeardownStepDone) -> None:
    state.teardown_done = (*state.teardown_done, event.step)
    state.teardown_blocked = None
    state.error_code = None
    if event.step == "key_revoked":
        state.key_revoked_ms = event.at_ms
    elif event.step == "absence_verified" and state.attempt is not None:
        state.attempt.discarded = True
        state.attempt.server_status = "deleted"
        state.attempt.action_id = None
    elif event.step == "addresses_freed":
        state.addresses_released_ms = event.at_ms


def _teardown_blocked(state: Instance, event: e.TeardownBlocked) -> None:
    state.teardown_blocked = event.step
    state.error_code = event.code


def _instance_deleted(state: Instance, event: e.InstanceDeleted) -> None:
    state.status = DELETED
    state.health = None
    state.error_code = None
    state.deleted_ms = event.at_ms


_FOLDS: dict[type[e.Event], Callable[[Instance, Any], None]] = {
    e.InstanceRequested: _requested_again,
    e.PlacementChosen: _placement_chosen,
    e.AddressReserved: _address_reserved,
    e.ServerIntended: _server_intended,
    e.ServerCreated: _server_created,
    e.ServerObserved: _server_observed,
    e.AttemptFailed: _attempt_failed,
    e.ServerDiscarded: _server_discarded,
    e.ProvisioningFailed: _provisioning_failed,
    e.AgentEnrolled: agent_enrolled,
    e.EnrolmentContested: enrolment_contested,
    e.AgentKeyIssued: agent_key_issued,
    e.AgentKeyAcknowledged: agent_key_acknowledged,
    e.AgentKeyRevoked: agent_key_revoked,
    e.BootstrapReported: bootstrap_reported,
    e.InstanceReady: _instance_ready,
    e.HealthChanged: _health_changed,
    e.ServerVanished: _server_vanished,
    e.ConfigChanged: config_changed,
    e.PlatformConfigPatched: config_changed,
    e.ModelPolicyChanged: config_changed,
    e.ConsentChanged: consent_changed,
    e.UpdatesRequested: unchanged,
    e.UpdatesApplied: unchanged,
    e.UpdatesFailed: unchanged,
    e.ConversationsAccessed: unchanged,
    e.UsageRecorded: usage_recorded,
    e.DeletionRequested: _deletion_requested,
    e.TeardownStepDone: _teardown_step_done,
    e.TeardownBlocked: _teardown_blocked,
    e.InstanceDeleted: _instance_deleted,
    e.CustomerErased: customer_erased,
}

assert set(_FOLDS) == set(get_args(e.AnyEvent)), "every event of the union has its fold"
