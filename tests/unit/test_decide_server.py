"""Decisions about the request, the placements and the server: what commands record, and what repeated and late ones do."""

from __future__ import annotations

from typing import Any

import pytest

from events import commands as c
from events import types as e
from events.decide import decide
from events.errors import NotFound, Rejected, TransitionRefused
from events.state import ATTEMPTS_MAX, TEARDOWN_STEPS
from tests import lifecycle
from tests.lifecycle import NOW_MS, InMemoryInstance, instance_id


def names(events: tuple[e.AnyEvent, ...]) -> list[str]:
    return [type(event).__name__ for event in events]


# --- the request -----------------------------------------------------------------------------------------------------


def test_a_request_records_every_field_that_was_given() -> None:
    command = lifecycle.request(tier_name="Starter", agent_name="Ada's", workflow_slugs=("a", "b"), recipe_id="r")

    (event,) = InMemoryInstance().execute(command)

    assert event == e.InstanceRequested(
        at_ms=NOW_MS,
        tenant_id="acme",
        customer_id="ada",
        idempotency_key="first",
        region_id="local",
        tier_id="starter",
        preset_id="personal_assistant",
        runtime_type="expressclaw",
        workload_type="agent",
        capabilities={"chat": True, "browser": False},
        tier_name="Starter",
        agent_name="Ada's",
        workflow_slugs=("a", "b"),
        recipe_id="r",
    )


def test_a_request_for_an_existing_instance_changes_nothing() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert life.execute(lifecycle.request(agent_name="another")) == ()


@pytest.mark.parametrize(
    "command", [lifecycle.plan(), lifecycle.enrol(), lifecycle.delete(), lifecycle.usage(1), lifecycle.rotate_key()]
)
def test_a_command_for_an_instance_that_was_never_requested_is_refused(command: c.AnyCommand) -> None:
    with pytest.raises(NotFound):
        decide(None, command, stream_id=instance_id())


# --- plans -----------------------------------------------------------------------------------------------------------


def test_the_first_plan_chooses_a_placement_reserves_addresses_and_intends_a_server_at_once() -> None:
    life = InMemoryInstance.after(*lifecycle.PENDING)

    events = life.execute(lifecycle.plan())

    assert names(events) == ["PlacementChosen", "AddressReserved", "ServerIntended"]
    assert (life.state.status, life.state.provisioning_stage) == ("provisioning", "server_intended")
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_later_plan_keeps_the_addresses_and_forgets_the_agent() -> None:
    life = InMemoryInstance.after(*lifecycle.KEYED, lifecycle.failed(), lifecycle.discarded())

    events = life.execute(lifecycle.plan(2, hostname="hc-other", vpn_ip="10.64.0.99"))

    assert names(events) == ["PlacementChosen", "ServerIntended"]
    assert (life.state.hostname, life.state.vpn_ip) == ("hc-ada", "10.64.0.16")
    assert life.state.agent is None


@pytest.mark.parametrize(
    "way", [lifecycle.INTENDED, lifecycle.CREATED, lifecycle.ATTEMPT_FAILED, lifecycle.RUNNING, lifecycle.DELETING]
)
def test_no_second_server_is_planned_while_the_first_one_may_exist(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused):
        InMemoryInstance.after(*way).execute(lifecycle.plan(2))


@pytest.mark.parametrize(
    ("way", "attempt"), [(lifecycle.PENDING, 2), (lifecycle.ATTEMPT_DISCARDED, 1), (lifecycle.ATTEMPT_DISCARDED, 3)]
)
def test_attempts_are_numbered_without_gaps_or_repeats(way: tuple[c.AnyCommand, ...], attempt: int) -> None:
    with pytest.raises(Rejected):
        InMemoryInstance.after(*way).execute(lifecycle.plan(attempt))


def test_there_are_at_most_four_attempts() -> None:
    life = InMemoryInstance.after(*lifecycle.PENDING)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        for command in (lifecycle.plan(attempt), lifecycle.failed(attempt), lifecycle.discarded(attempt)):
            assert life.execute(command)

    with pytest.raises(TransitionRefused):
        life.execute(lifecycle.plan(ATTEMPTS_MAX + 1))
    assert len(life.state.failed_placements) == ATTEMPTS_MAX


def test_no_server_is_planned_after_a_failure_that_is_not_retryable() -> None:
    life = InMemoryInstance.after(*lifecycle.CREATED, lifecycle.failed(retryable=False), lifecycle.discarded())

    with pytest.raises(TransitionRefused):
        life.execute(lifecycle.plan(2))


# --- observations ----------------------------------------------------------------------------------------------------


def test_a_created_server_is_recorded_once() -> None:
    life = InMemoryInstance.after(*lifecycle.INTENDED)

    first = life.execute(lifecycle.created())
    second = life.execute(lifecycle.created(server_id="999"))

    assert (names(first), second) == (["ServerCreated"], ())
    assert life.state.attempt is not None
    assert life.state.attempt.server_id == "41"


def test_a_create_reply_that_comes_after_its_attempt_failed_is_still_recorded() -> None:
    life = InMemoryInstance.after(*lifecycle.INTENDED, lifecycle.failed(code="boot_timeout"))

    events = life.execute(lifecycle.created())

    assert names(events) == ["ServerCreated"]
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_create_reply_that_comes_during_a_deletion_is_still_recorded() -> None:
    life = InMemoryInstance.after(*lifecycle.INTENDED, lifecycle.delete())

    assert names(life.execute(lifecycle.created())) == ["ServerCreated"]


@pytest.mark.parametrize(
    "way",
    [
        lifecycle.PENDING,
        lifecycle.ATTEMPT_DISCARDED,
        (*lifecycle.INTENDED, lifecycle.failed(), lifecycle.discarded()),
        (*lifecycle.ATTEMPT_DISCARDED, lifecycle.plan(2)),
        lifecycle.FAILED,
        lifecycle.TORN_DOWN,
        (*lifecycle.INTENDED, lifecycle.delete(), *map(lifecycle.teardown, TEARDOWN_STEPS)),
        lifecycle.DELETED,
    ],
)
def test_a_create_reply_of_an_attempt_that_is_over_changes_nothing(way: tuple[c.AnyCommand, ...]) -> None:
    assert InMemoryInstance.after(*way).execute(lifecycle.created(server_id="999")) == ()


def test_a_create_reply_that_comes_after_an_enrolment_does_not_set_the_stage_back() -> None:
    life = InMemoryInstance.after(*lifecycle.INTENDED, lifecycle.enrol())

    life.execute(lifecycle.created())

    assert life.execute(lifecycle.observed()) == ()
    assert life.state.provisioning_stage == "bootstrapping"
    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None


def test_an_enrolment_shows_that_the_server_runs_so_that_observing_it_adds_no_event() -> None:
    life = InMemoryInstance.after(*lifecycle.CREATED, lifecycle.enrol())

    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None
    assert life.execute(lifecycle.observed()) == ()


def test_a_running_server_is_observed_once() -> None:
    life = InMemoryInstance.after(*lifecycle.CREATED)

    assert names(life.execute(lifecycle.observed())) == ["ServerObserved"]
    assert life.execute(lifecycle.observed()) == ()


@pytest.mark.parametrize("make", [lifecycle.observed, lifecycle.failed, lifecycle.mark_ready, lifecycle.discarded])
def test_an_observation_of_another_attempt_changes_nothing(make: Any) -> None:
    life = InMemoryInstance.after(*lifecycle.ATTEMPT_DISCARDED, lifecycle.plan(2), lifecycle.created(2))

    assert life.execute(make(1)) == ()
    assert life.execute(make(3)) == ()


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_attempt_fails_once_and_its_placement_is_remembered() -> None:
    life = InMemoryInstance.after(*lifecycle.CREATED)

    first = life.execute(lifecycle.failed(code="locked"))
    second = life.execute(lifecycle.failed(code="boot_timeout"))

    assert (names(first), second) == (["AttemptFailed"], ())
    assert life.state.failed_placements == (("cloudsim", "cx22", "fsn1"),)
    assert life.state.error_code == "locked"


@pytest.mark.parametrize("way", [lifecycle.RUNNING, lifecycle.DELETING, lifecycle.FAILED])
def test_a_failure_of_an_attempt_that_is_not_being_provisioned_changes_nothing(way: tuple[c.AnyCommand, ...]) -> None:
    assert InMemoryInstance.after(*way).execute(lifecycle.failed()) == ()


def test_only_a_failed_attempt_is_discarded_and_only_once() -> None:
    assert InMemoryInstance.after(*lifecycle.CREATED).execute(lifecycle.discarded()) == ()

    life = InMemoryInstance.after(*lifecycle.ATTEMPT_FAILED)
    assert names(life.execute(lifecycle.discarded())) == ["ServerDiscarded"]
    assert life.execute(lifecycle.discarded()) == ()


def test_discarding_an_earlier_attempt_does_not_discard_the_server_of_the_current_one() -> None:
    life = InMemoryInstance.after(
        *lifecycle.ATTEMPT_DISCARDED, lifecycle.plan(2), lifecycle.created(2), lifecycle.failed(2)
    )

    assert life.execute(lifecycle.discarded(1)) == ()
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


@pytest.mark.parametrize("way", [lifecycle.INTENDED, lifecycle.CREATED, lifecycle.ATTEMPT_FAILED])
def test_provisioning_is_not_given_up_while_there_may_be_a_server(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused, match="cannot fail with a server"):
        InMemoryInstance.after(*way).execute(lifecycle.gave_up())


def test_provisioning_that_is_given_up_records_the_reason() -> None:
    life = InMemoryInstance.after(*lifecycle.ATTEMPT_DISCARDED)

    (event,) = life.execute(lifecycle.gave_up("no_placement"))

    assert event == e.ProvisioningFailed(at_ms=NOW_MS, code="no_placement")
    assert (life.state.status, life.state.error_code) == ("failed", "no_placement")


# --- readiness, health, loss -----------------------------------------------------------------------------------------


def test_an_instance_becomes_ready_once() -> None:
    life = InMemoryInstance.after(*lifecycle.HEALTHY)

    assert names(life.execute(lifecycle.mark_ready())) == ["InstanceReady"]
    assert life.execute(lifecycle.mark_ready()) == ()
    assert (life.state.provisioning_stage, life.state.health) == ("ready", "healthy")


@pytest.mark.parametrize("way", [lifecycle.OBSERVED, (*lifecycle.INTENDED, lifecycle.enrol())])
def test_an_instance_without_a_server_or_without_an_agent_cannot_become_ready(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused):
        InMemoryInstance.after(*way).execute(lifecycle.mark_ready())


def test_an_instance_whose_deletion_was_requested_does_not_become_ready() -> None:
    life = InMemoryInstance.after(*lifecycle.HEALTHY, lifecycle.delete())

    assert life.execute(lifecycle.mark_ready()) == ()
    assert life.state.status == "deleting"


def test_only_a_change_of_health_is_an_event() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert life.execute(lifecycle.health("healthy")) == ()
    assert names(life.execute(lifecycle.health("late"))) == ["HealthChanged"]
    assert life.execute(lifecycle.health("late")) == ()


@pytest.mark.parametrize("way", [lifecycle.HEALTHY, lifecycle.LOST, lifecycle.DELETING, lifecycle.DELETED])
def test_the_health_of_an_instance_that_is_not_running_is_not_recorded(way: tuple[c.AnyCommand, ...]) -> None:
    assert InMemoryInstance.after(*way).execute(lifecycle.health("unreachable")) == ()


def test_a_running_instance_whose_server_vanished_is_in_error_and_may_still_have_it() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert names(life.execute(lifecycle.vanished())) == ["ServerVanished"]
    assert life.execute(lifecycle.vanished()) == ()
    assert life.state.status == "error"
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_server_that_vanishes_during_provisioning_fails_its_attempt() -> None:
    life = InMemoryInstance.after(*lifecycle.OBSERVED)

    (event,) = life.execute(lifecycle.vanished())

    assert event == e.AttemptFailed(at_ms=NOW_MS, attempt=1, code="server_vanished", retryable=True)


@pytest.mark.parametrize("command", [lifecycle.vanished(server_id="999"), lifecycle.vanished(attempt=2)])
def test_the_disappearance_of_another_server_or_attempt_changes_nothing(command: c.AnyCommand) -> None:
    assert InMemoryInstance.after(*lifecycle.RUNNING).execute(command) == ()
