"""Decisions about the request, the placements and the server: what commands record, and what repeated and late ones do."""

from __future__ import annotations

from typing import Any

import pytest

from events import commands as c
from events import types as e
from events.decide import decide
from events.errors import NotFound, Rejected, TransitionRefused
from events.state import ATTEMPTS_MAX, TEARDOWN_STEPS
from tests import lives
from tests.lives import NOW_MS, Life, instance_id


def names(events: tuple[e.AnyEvent, ...]) -> list[str]:
    return [type(event).__name__ for event in events]


# --- the request -----------------------------------------------------------------------------------------------------


def test_a_request_records_every_field_that_was_given() -> None:
    command = lives.request(tier_name="Starter", agent_name="Ada's", workflow_slugs=("a", "b"), recipe_id="r")

    (event,) = Life().give(command)

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
    life = Life.after(*lives.RUNNING)

    assert life.give(lives.request(agent_name="another")) == ()


@pytest.mark.parametrize("command", [lives.plan(), lives.enrol(), lives.delete(), lives.usage(1), lives.rotate_key()])
def test_a_command_for_an_instance_that_was_never_requested_is_refused(command: c.AnyCommand) -> None:
    with pytest.raises(NotFound):
        decide(None, command, stream_id=instance_id())


# --- plans -----------------------------------------------------------------------------------------------------------


def test_the_first_plan_chooses_a_placement_reserves_addresses_and_intends_a_server_at_once() -> None:
    life = Life.after(*lives.PENDING)

    events = life.give(lives.plan())

    assert names(events) == ["PlacementChosen", "AddressReserved", "ServerIntended"]
    assert (life.state.status, life.state.provisioning_stage) == ("provisioning", "server_intended")
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_later_plan_keeps_the_addresses_and_forgets_the_agent() -> None:
    life = Life.after(*lives.KEYED, lives.failed(), lives.discarded())

    events = life.give(lives.plan(2, hostname="hc-other", vpn_ip="10.64.0.99"))

    assert names(events) == ["PlacementChosen", "ServerIntended"]
    assert (life.state.hostname, life.state.vpn_ip) == ("hc-ada", "10.64.0.16")
    assert life.state.agent is None


@pytest.mark.parametrize("way", [lives.INTENDED, lives.CREATED, lives.ATTEMPT_FAILED, lives.RUNNING, lives.DELETING])
def test_no_second_server_is_planned_while_the_first_one_may_exist(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused):
        Life.after(*way).give(lives.plan(2))


@pytest.mark.parametrize(
    ("way", "attempt"), [(lives.PENDING, 2), (lives.ATTEMPT_DISCARDED, 1), (lives.ATTEMPT_DISCARDED, 3)]
)
def test_attempts_are_numbered_without_gaps_or_repeats(way: tuple[c.AnyCommand, ...], attempt: int) -> None:
    with pytest.raises(Rejected):
        Life.after(*way).give(lives.plan(attempt))


def test_there_are_at_most_four_attempts() -> None:
    life = Life.after(*lives.PENDING)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        for command in (lives.plan(attempt), lives.failed(attempt), lives.discarded(attempt)):
            assert life.give(command)

    with pytest.raises(TransitionRefused):
        life.give(lives.plan(ATTEMPTS_MAX + 1))
    assert len(life.state.failed_placements) == ATTEMPTS_MAX


def test_no_server_is_planned_after_a_failure_that_is_not_retryable() -> None:
    life = Life.after(*lives.CREATED, lives.failed(retryable=False), lives.discarded())

    with pytest.raises(TransitionRefused):
        life.give(lives.plan(2))


# --- observations ----------------------------------------------------------------------------------------------------


def test_a_created_server_is_recorded_once() -> None:
    life = Life.after(*lives.INTENDED)

    first = life.give(lives.created())
    second = life.give(lives.created(server_id="999"))

    assert (names(first), second) == (["ServerCreated"], ())
    assert life.state.attempt is not None
    assert life.state.attempt.server_id == "41"


def test_a_create_reply_that_comes_after_its_attempt_failed_is_still_recorded() -> None:
    life = Life.after(*lives.INTENDED, lives.failed(code="boot_timeout"))

    events = life.give(lives.created())

    assert names(events) == ["ServerCreated"]
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_create_reply_that_comes_during_a_deletion_is_still_recorded() -> None:
    life = Life.after(*lives.INTENDED, lives.delete())

    assert names(life.give(lives.created())) == ["ServerCreated"]


@pytest.mark.parametrize(
    "way",
    [
        lives.PENDING,
        lives.ATTEMPT_DISCARDED,
        (*lives.INTENDED, lives.failed(), lives.discarded()),
        (*lives.ATTEMPT_DISCARDED, lives.plan(2)),
        lives.FAILED,
        lives.TORN_DOWN,
        (*lives.INTENDED, lives.delete(), *map(lives.teardown, TEARDOWN_STEPS)),
        lives.DELETED,
    ],
)
def test_a_create_reply_of_an_attempt_that_is_over_changes_nothing(way: tuple[c.AnyCommand, ...]) -> None:
    assert Life.after(*way).give(lives.created(server_id="999")) == ()


def test_a_create_reply_that_comes_after_an_enrolment_does_not_set_the_stage_back() -> None:
    life = Life.after(*lives.INTENDED, lives.enrol())

    life.give(lives.created())

    assert life.give(lives.observed()) == ()
    assert life.state.provisioning_stage == "bootstrapping"
    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None


def test_an_enrolment_shows_that_the_server_runs_so_that_observing_it_adds_no_event() -> None:
    life = Life.after(*lives.CREATED, lives.enrol())

    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None
    assert life.give(lives.observed()) == ()


def test_a_running_server_is_observed_once() -> None:
    life = Life.after(*lives.CREATED)

    assert names(life.give(lives.observed())) == ["ServerObserved"]
    assert life.give(lives.observed()) == ()


@pytest.mark.parametrize("make", [lives.observed, lives.failed, lives.mark_ready, lives.discarded])
def test_an_observation_of_another_attempt_changes_nothing(make: Any) -> None:
    life = Life.after(*lives.ATTEMPT_DISCARDED, lives.plan(2), lives.created(2))

    assert life.give(make(1)) == ()
    assert life.give(make(3)) == ()


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_attempt_fails_once_and_its_placement_is_remembered() -> None:
    life = Life.after(*lives.CREATED)

    first = life.give(lives.failed(code="locked"))
    second = life.give(lives.failed(code="boot_timeout"))

    assert (names(first), second) == (["AttemptFailed"], ())
    assert life.state.failed_placements == (("cloudsim", "cx22", "fsn1"),)
    assert life.state.error_code == "locked"


@pytest.mark.parametrize("way", [lives.RUNNING, lives.DELETING, lives.FAILED])
def test_a_failure_of_an_attempt_that_is_not_being_provisioned_changes_nothing(way: tuple[c.AnyCommand, ...]) -> None:
    assert Life.after(*way).give(lives.failed()) == ()


def test_only_a_failed_attempt_is_discarded_and_only_once() -> None:
    assert Life.after(*lives.CREATED).give(lives.discarded()) == ()

    life = Life.after(*lives.ATTEMPT_FAILED)
    assert names(life.give(lives.discarded())) == ["ServerDiscarded"]
    assert life.give(lives.discarded()) == ()


def test_discarding_an_earlier_attempt_does_not_discard_the_server_of_the_current_one() -> None:
    life = Life.after(*lives.ATTEMPT_DISCARDED, lives.plan(2), lives.created(2), lives.failed(2))

    assert life.give(lives.discarded(1)) == ()
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


@pytest.mark.parametrize("way", [lives.INTENDED, lives.CREATED, lives.ATTEMPT_FAILED])
def test_provisioning_is_not_given_up_while_there_may_be_a_server(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused, match="cannot fail with a server"):
        Life.after(*way).give(lives.gave_up())


def test_provisioning_that_is_given_up_records_the_reason() -> None:
    life = Life.after(*lives.ATTEMPT_DISCARDED)

    (event,) = life.give(lives.gave_up("no_placement"))

    assert event == e.ProvisioningFailed(at_ms=NOW_MS, code="no_placement")
    assert (life.state.status, life.state.error_code) == ("failed", "no_placement")


# --- readiness, health, loss -----------------------------------------------------------------------------------------


def test_an_instance_becomes_ready_once() -> None:
    life = Life.after(*lives.HEALTHY)

    assert names(life.give(lives.mark_ready())) == ["InstanceReady"]
    assert life.give(lives.mark_ready()) == ()
    assert (life.state.provisioning_stage, life.state.health) == ("ready", "healthy")


@pytest.mark.parametrize("way", [lives.OBSERVED, (*lives.INTENDED, lives.enrol())])
def test_an_instance_without_a_server_or_without_an_agent_cannot_become_ready(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused):
        Life.after(*way).give(lives.mark_ready())


def test_an_instance_whose_deletion_was_requested_does_not_become_ready() -> None:
    life = Life.after(*lives.HEALTHY, lives.delete())

    assert life.give(lives.mark_ready()) == ()
    assert life.state.status == "deleting"


def test_only_a_change_of_health_is_an_event() -> None:
    life = Life.after(*lives.RUNNING)

    assert life.give(lives.health("healthy")) == ()
    assert names(life.give(lives.health("late"))) == ["HealthChanged"]
    assert life.give(lives.health("late")) == ()


@pytest.mark.parametrize("way", [lives.HEALTHY, lives.LOST, lives.DELETING, lives.DELETED])
def test_the_health_of_an_instance_that_is_not_running_is_not_recorded(way: tuple[c.AnyCommand, ...]) -> None:
    assert Life.after(*way).give(lives.health("unreachable")) == ()


def test_a_running_instance_whose_server_vanished_is_in_error_and_may_still_have_it() -> None:
    life = Life.after(*lives.RUNNING)

    assert names(life.give(lives.vanished())) == ["ServerVanished"]
    assert life.give(lives.vanished()) == ()
    assert life.state.status == "error"
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_server_that_vanishes_during_provisioning_fails_its_attempt() -> None:
    life = Life.after(*lives.OBSERVED)

    (event,) = life.give(lives.vanished())

    assert event == e.AttemptFailed(at_ms=NOW_MS, attempt=1, code="server_vanished", retryable=True)


@pytest.mark.parametrize("command", [lives.vanished(server_id="999"), lives.vanished(attempt=2)])
def test_the_disappearance_of_another_server_or_attempt_changes_nothing(command: c.AnyCommand) -> None:
    assert Life.after(*lives.RUNNING).give(command) == ()
