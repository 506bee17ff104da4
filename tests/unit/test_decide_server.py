"""Decisions about the request, the placements and the server: what each command causes, repeats, and what comes late."""

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


def test_a_request_keeps_everything_that_was_asked_for() -> None:
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


def test_a_request_for_what_exists_changes_nothing() -> None:
    life = Life.after(*lives.RUNNING)

    assert life.give(lives.request(agent_name="another")) == ()


@pytest.mark.parametrize("command", [lives.plan(), lives.enrol(), lives.delete(), lives.usage(1), lives.rotate_key()])
def test_nothing_can_happen_to_an_instance_that_nobody_asked_for(command: c.AnyCommand) -> None:
    with pytest.raises(NotFound):
        decide(None, command, stream_id=instance_id())


# --- plans -----------------------------------------------------------------------------------------------------------


def test_the_first_plan_chooses_a_placement_takes_addresses_and_intends_a_server_in_one_decision() -> None:
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
def test_no_second_server_is_planned_while_there_may_be_a_first_one(way: tuple[c.AnyCommand, ...]) -> None:
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


def test_nothing_is_planned_after_a_failure_that_no_placement_can_mend() -> None:
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


def test_a_create_reply_that_comes_after_its_attempt_failed_still_says_what_to_remove() -> None:
    life = Life.after(*lives.INTENDED, lives.failed(code="boot_timeout"))

    events = life.give(lives.created())

    assert names(events) == ["ServerCreated"]
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_create_reply_that_comes_during_a_deletion_still_says_what_to_remove() -> None:
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


def test_an_agent_that_enrols_before_the_create_reply_keeps_its_stage() -> None:
    life = Life.after(*lives.INTENDED, lives.enrol())

    life.give(lives.created())

    assert life.give(lives.observed()) == ()
    assert life.state.provisioning_stage == "bootstrapping"
    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None


def test_an_agent_that_enrols_tells_that_its_server_runs() -> None:
    life = Life.after(*lives.CREATED, lives.enrol())

    assert life.state.attempt is not None
    assert life.state.attempt.action_id is None
    assert life.give(lives.observed()) == ()


def test_a_running_server_is_observed_once() -> None:
    life = Life.after(*lives.CREATED)

    assert names(life.give(lives.observed())) == ["ServerObserved"]
    assert life.give(lives.observed()) == ()


@pytest.mark.parametrize("make", [lives.observed, lives.failed, lives.mark_ready, lives.discarded])
def test_what_concerns_another_attempt_changes_nothing(make: Any) -> None:
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
def test_an_attempt_cannot_fail_when_it_is_not_being_provisioned(way: tuple[c.AnyCommand, ...]) -> None:
    assert Life.after(*way).give(lives.failed()) == ()


def test_only_a_failed_attempt_is_discarded_and_only_once() -> None:
    assert Life.after(*lives.CREATED).give(lives.discarded()) == ()

    life = Life.after(*lives.ATTEMPT_FAILED)
    assert names(life.give(lives.discarded())) == ["ServerDiscarded"]
    assert life.give(lives.discarded()) == ()


def test_that_an_earlier_attempt_left_no_server_says_nothing_of_the_present_one() -> None:
    life = Life.after(*lives.ATTEMPT_DISCARDED, lives.plan(2), lives.created(2), lives.failed(2))

    assert life.give(lives.discarded(1)) == ()
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


@pytest.mark.parametrize("way", [lives.INTENDED, lives.CREATED, lives.ATTEMPT_FAILED])
def test_nobody_gives_up_while_there_may_be_a_server(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused, match="cannot fail with a server"):
        Life.after(*way).give(lives.gave_up())


def test_giving_up_says_why() -> None:
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
def test_nothing_is_ready_without_a_server_and_an_agent(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(TransitionRefused):
        Life.after(*way).give(lives.mark_ready())


def test_a_deletion_that_came_first_wins_over_readiness() -> None:
    life = Life.after(*lives.HEALTHY, lives.delete())

    assert life.give(lives.mark_ready()) == ()
    assert life.state.status == "deleting"


def test_only_a_change_of_health_is_an_event() -> None:
    life = Life.after(*lives.RUNNING)

    assert life.give(lives.health("healthy")) == ()
    assert names(life.give(lives.health("late"))) == ["HealthChanged"]
    assert life.give(lives.health("late")) == ()


@pytest.mark.parametrize("way", [lives.HEALTHY, lives.LOST, lives.DELETING, lives.DELETED])
def test_health_is_a_matter_of_running_instances(way: tuple[c.AnyCommand, ...]) -> None:
    assert Life.after(*way).give(lives.health("unreachable")) == ()


def test_a_vanished_server_of_a_running_instance_is_an_error_and_stays_ours_to_look_for() -> None:
    life = Life.after(*lives.RUNNING)

    assert names(life.give(lives.vanished())) == ["ServerVanished"]
    assert life.give(lives.vanished()) == ()
    assert life.state.status == "error"
    assert life.state.attempt is not None
    assert life.state.attempt.may_have_server


def test_a_server_that_vanishes_while_it_is_made_fails_its_attempt() -> None:
    life = Life.after(*lives.OBSERVED)

    (event,) = life.give(lives.vanished())

    assert event == e.AttemptFailed(at_ms=NOW_MS, attempt=1, code="server_vanished", retryable=True)


@pytest.mark.parametrize("command", [lives.vanished(server_id="999"), lives.vanished(attempt=2)])
def test_that_another_server_vanished_is_no_news(command: c.AnyCommand) -> None:
    assert Life.after(*lives.RUNNING).give(command) == ()
