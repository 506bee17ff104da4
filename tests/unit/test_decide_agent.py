"""Decisions about what agents send: enrolment, keys and callbacks, in order, repeated, late, and from the wrong sender."""

from __future__ import annotations

from uuid import UUID

import pytest

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
from events.evolve_agent import SUPERSEDED_BOOTS_KEPT
from events.state import Agent
from tests import lifecycle
from tests.lifecycle import (
    BOOT,
    ENROL_TTL_MS,
    KEY,
    NOW_MS,
    OTHER_SIGNING_KEY,
    SECOND_BOOT,
    SECOND_KEY,
    THIRD_BOOT,
    THIRD_KEY,
    InMemoryInstance,
)

#: Everything that an agent can send, as its first attempt would.
MESSAGES: tuple[c.AnyCommand, ...] = (
    lifecycle.enrol(),
    lifecycle.issue(),
    lifecycle.acknowledge(),
    lifecycle.report(1, "booted"),
)


def agent_of(life: InMemoryInstance) -> Agent:
    assert life.state.agent is not None
    return life.state.agent


# --- agents that must stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("status", ["pending", "failed", "error", "deleted"])
def test_an_agent_of_an_instance_that_is_pending_failed_in_error_or_deleted_must_stop(
    status: str, message: c.AnyCommand
) -> None:
    with pytest.raises(AttemptSuperseded):
        InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[status]).execute(message)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize(
    "way",
    [
        (*lifecycle.ENROLLED, lifecycle.issue(), lifecycle.delete()),
        (*lifecycle.DELETING, lifecycle.teardown("key_revoked"), lifecycle.teardown("drained")),
    ],
    ids=["never had a chat", "drained"],
)
def test_an_agent_with_nothing_left_to_report_must_stop_while_its_instance_is_deleted(
    way: tuple[c.AnyCommand, ...], message: c.AnyCommand
) -> None:
    with pytest.raises(AttemptSuperseded):
        InMemoryInstance.after(*way).execute(message)


# --- agents being drained --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), ("key_revoked",)])
def test_bootstrap_reports_of_an_agent_being_drained_are_refused(steps: tuple[e.TeardownStep, ...]) -> None:
    with pytest.raises(AgentDraining):
        InMemoryInstance.after(*lifecycle.DELETING, *map(lifecycle.teardown, steps)).execute(
            lifecycle.report(9, "booted")
        )


def test_an_agent_being_drained_without_a_key_in_force_gets_one_that_is_revoked_once_drained() -> None:
    life = InMemoryInstance.after(
        *lifecycle.RUNNING, lifecycle.rotate_key(), lifecycle.delete(), lifecycle.teardown("key_revoked")
    )

    life.execute(lifecycle.issue(SECOND_KEY))
    life.execute(lifecycle.acknowledge(SECOND_KEY))
    assert agent_of(life).control_key_id == SECOND_KEY

    assert life.execute(lifecycle.teardown("drained")) == (
        e.AgentKeyRevoked(at_ms=NOW_MS, key_id=SECOND_KEY, reason="deletion"),
        e.TeardownStepDone(at_ms=NOW_MS, step="drained"),
    )


def test_a_later_boot_of_an_agent_being_drained_can_enrol() -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, lifecycle.teardown("key_revoked"))

    life.execute(lifecycle.enrol(SECOND_BOOT))

    assert agent_of(life).boot_id == SECOND_BOOT
    assert agent_of(life).leaving_key_id == KEY


@pytest.mark.parametrize("message", MESSAGES)
def test_an_agent_of_an_older_attempt_must_stop(message: c.AnyCommand) -> None:
    life = InMemoryInstance.after(*lifecycle.KEYED, lifecycle.failed(), lifecycle.discarded(), lifecycle.plan(2))

    with pytest.raises(AttemptSuperseded):
        life.execute(message)


def test_an_agent_of_an_attempt_that_has_failed_cannot_enrol_any_more() -> None:
    with pytest.raises(AttemptSuperseded):
        InMemoryInstance.after(*lifecycle.ATTEMPT_FAILED).execute(lifecycle.enrol())


# --- enrolment -------------------------------------------------------------------------------------------------------


def test_the_first_agent_with_the_token_is_bound_to_it() -> None:
    life = InMemoryInstance.after(*lifecycle.OBSERVED)

    (event,) = life.execute(lifecycle.enrol())

    assert isinstance(event, e.AgentEnrolled)
    assert (agent_of(life).signing_key, agent_of(life).boot_id) == (lifecycle.SIGNING_KEY, BOOT)
    assert life.state.provisioning_stage == "bootstrapping"


def test_a_repeated_enrolment_adds_no_event() -> None:
    assert InMemoryInstance.after(*lifecycle.ENROLLED).execute(lifecycle.enrol()) == ()


@pytest.mark.parametrize("way", [lifecycle.OBSERVED, lifecycle.ENROLLED])
def test_an_enrolment_with_a_wrong_token_is_refused(way: tuple[c.AnyCommand, ...]) -> None:
    life = InMemoryInstance.after(*way)

    with pytest.raises(TokenRefused):
        life.execute(lifecycle.enrol(SECOND_BOOT, token_hash=lifecycle.token_hash(9)))


def test_an_enrol_token_is_valid_until_the_millisecond_of_its_expiry_and_no_longer() -> None:
    last_ms = NOW_MS + ENROL_TTL_MS

    with pytest.raises(TokenRefused):
        InMemoryInstance.after(*lifecycle.OBSERVED).execute(lifecycle.enrol(at_ms=last_ms + 1))
    assert InMemoryInstance.after(*lifecycle.OBSERVED).execute(lifecycle.enrol(at_ms=last_ms))


def test_an_enrolled_agent_can_enrol_a_new_boot_after_its_token_has_expired() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED)

    assert life.execute(lifecycle.enrol(SECOND_BOOT, at_ms=NOW_MS + 10 * ENROL_TTL_MS))
    assert agent_of(life).boot_id == SECOND_BOOT


def test_an_enrolment_with_the_right_token_but_another_key_raises_one_alarm_and_binds_nothing() -> None:
    life = InMemoryInstance.after(*lifecycle.KEYED)

    (alarm,) = life.execute(lifecycle.enrol(SECOND_BOOT, signing_key=OTHER_SIGNING_KEY))
    again = life.execute(lifecycle.enrol(THIRD_BOOT, signing_key=OTHER_SIGNING_KEY))

    assert alarm == e.EnrolmentContested(at_ms=NOW_MS, attempt=1, boot_id=SECOND_BOOT)
    assert again == ()
    assert (agent_of(life).signing_key, agent_of(life).boot_id) == (lifecycle.SIGNING_KEY, BOOT)


def test_an_enrolment_with_another_vpn_key_also_raises_an_alarm() -> None:
    (alarm,) = InMemoryInstance.after(*lifecycle.ENROLLED).execute(lifecycle.enrol(vpn_key="b3RoZXI="))

    assert isinstance(alarm, e.EnrolmentContested)


def test_a_new_boot_restarts_the_callback_sequence_and_keeps_the_key() -> None:
    life = InMemoryInstance.after(*lifecycle.HEALTHY)

    life.execute(lifecycle.enrol(SECOND_BOOT))

    assert (agent_of(life).bootstrap_seq, agent_of(life).bootstrap_stage) == (0, None)
    assert (agent_of(life).key_id, agent_of(life).key_acknowledged) == (KEY, True)
    assert life.state.provisioning_stage == "bootstrapping"


def test_a_new_boot_of_a_running_agent_leaves_its_instance_running_and_ready() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    life.execute(lifecycle.enrol(SECOND_BOOT))

    assert (life.state.status, life.state.provisioning_stage) == ("running", "ready")


def test_a_superseded_boot_cannot_enrol_again() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.enrol(SECOND_BOOT))

    with pytest.raises(BootSuperseded):
        life.execute(lifecycle.enrol(BOOT))


def test_an_agent_that_boots_again_and_again_does_not_make_the_state_grow_without_limit() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED)
    boots = tuple(UUID(int=0xE00 + number) for number in range(SUPERSEDED_BOOTS_KEPT + 9))

    for boot in boots:
        assert life.execute(lifecycle.enrol(boot))

    assert agent_of(life).superseded_boots == boots[-SUPERSEDED_BOOTS_KEPT - 1 : -1]


# --- the key ---------------------------------------------------------------------------------------------------------


def test_issuing_a_key_again_before_it_is_acknowledged_keeps_the_same_key() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.issue(KEY))

    again = life.execute(lifecycle.issue(SECOND_KEY))

    assert again == ()
    assert agent_of(life).key_id == KEY


def test_an_acknowledged_key_is_never_given_out_again() -> None:
    with pytest.raises(KeyNotPending):
        InMemoryInstance.after(*lifecycle.KEYED).execute(lifecycle.issue(SECOND_KEY))


def test_a_repeated_acknowledgement_of_a_key_adds_no_event() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.issue())

    assert life.execute(lifecycle.acknowledge()) == (e.AgentKeyAcknowledged(at_ms=NOW_MS, key_id=KEY),)
    assert life.execute(lifecycle.acknowledge()) == ()
    assert agent_of(life).control_key_id == KEY


def test_a_bootstrap_report_acknowledges_the_key_that_it_names_once() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.issue())
    report = lifecycle.report(1, "booted", key_id=KEY)

    assert [type(event) for event in life.execute(report)] == [e.AgentKeyAcknowledged, e.BootstrapReported]
    assert life.execute(report) == ()
    assert agent_of(life).key_acknowledged


@pytest.mark.parametrize("way", [lifecycle.ENROLLED, lifecycle.KEYED])
def test_a_key_that_is_not_in_force_cannot_be_acknowledged(way: tuple[c.AnyCommand, ...]) -> None:
    with pytest.raises(KeyNotPending):
        InMemoryInstance.after(*way).execute(lifecycle.acknowledge(SECOND_KEY))
    with pytest.raises(KeyNotPending):
        InMemoryInstance.after(*way).execute(lifecycle.report(1, "booted", key_id=SECOND_KEY))


def test_no_key_is_issued_before_an_agent_has_enrolled() -> None:
    with pytest.raises(AttemptSuperseded):
        InMemoryInstance.after(*lifecycle.OBSERVED).execute(lifecycle.issue())


def test_a_superseded_boot_gets_no_key() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.enrol(SECOND_BOOT))

    with pytest.raises(BootSuperseded):
        life.execute(lifecycle.issue(boot_id=BOOT))
    assert life.execute(lifecycle.issue(boot_id=SECOND_BOOT))


def test_a_rotation_revokes_the_key_and_lets_one_new_key_be_issued() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    (revoked,) = life.execute(lifecycle.rotate_key())
    second = life.execute(lifecycle.rotate_key())

    assert revoked == e.AgentKeyRevoked(at_ms=NOW_MS, key_id=KEY, reason="rotation")
    assert second == ()
    assert agent_of(life).key_hash is None
    assert life.execute(lifecycle.issue(SECOND_KEY))
    assert life.execute(lifecycle.acknowledge(SECOND_KEY))
    with pytest.raises(KeyNotPending):
        life.execute(lifecycle.issue(THIRD_KEY))


def test_a_revoked_key_cannot_be_acknowledged_but_remains_the_key_for_calls_to_the_agent() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.rotate_key())

    with pytest.raises(KeyNotPending):
        life.execute(lifecycle.acknowledge(KEY))
    assert agent_of(life).control_key_id == KEY


# --- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_are_recorded_in_order() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED)

    events = life.execute(lifecycle.report(1, "booted")) + life.execute(lifecycle.report(2, "enrolled"))

    assert [event.seq for event in events if isinstance(event, e.BootstrapReported)] == [1, 2]
    assert agent_of(life).bootstrap_stage == "enrolled"


@pytest.mark.parametrize("seq", [0, 1, 2])
def test_a_repeated_or_late_callback_adds_no_event(seq: int) -> None:
    assert (
        InMemoryInstance.after(*lifecycle.KEYED).execute(lifecycle.report(seq, "healthy", message="something else"))
        == ()
    )


@pytest.mark.parametrize("seq", [4, 5, 1_000])
def test_a_callback_ahead_of_its_sequence_is_refused_with_the_expected_number(seq: int) -> None:
    with pytest.raises(SequenceGap) as refusal:
        InMemoryInstance.after(*lifecycle.KEYED).execute(lifecycle.report(seq, "healthy"))

    assert refusal.value.expected_seq == 3


def test_a_callback_of_a_superseded_boot_is_refused() -> None:
    life = InMemoryInstance.after(*lifecycle.KEYED, lifecycle.enrol(SECOND_BOOT))

    with pytest.raises(BootSuperseded):
        life.execute(lifecycle.report(3, "secrets", BOOT))
    assert life.execute(lifecycle.report(1, "booted", SECOND_BOOT))


@pytest.mark.parametrize("boot_id", [BOOT, THIRD_BOOT], ids=["superseded", "never enrolled"])
def test_an_acknowledgement_from_a_boot_other_than_the_current_one_is_refused(boot_id: UUID) -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.issue(), lifecycle.enrol(SECOND_BOOT))

    with pytest.raises(BootSuperseded):
        life.execute(lifecycle.acknowledge(boot_id=boot_id))
    assert life.execute(lifecycle.acknowledge(boot_id=SECOND_BOOT))


def test_a_callback_of_a_boot_that_never_enrolled_is_refused() -> None:
    with pytest.raises(BootSuperseded):
        InMemoryInstance.after(*lifecycle.KEYED).execute(lifecycle.report(1, "booted", THIRD_BOOT))


def test_the_bootstrap_stage_never_goes_back_within_a_boot() -> None:
    life = InMemoryInstance.after(*lifecycle.ENROLLED, lifecycle.report(1, "configured"))

    (event,) = life.execute(lifecycle.report(2, "booted"))

    assert isinstance(event, e.BootstrapReported)
    assert event.stage == "booted"
    assert (agent_of(life).bootstrap_stage, agent_of(life).bootstrap_seq) == ("configured", 2)


def test_an_instance_whose_agent_reports_healthy_is_in_the_verifying_stage() -> None:
    assert InMemoryInstance.after(*lifecycle.HEALTHY).state.provisioning_stage == "verifying"


def test_a_report_after_a_new_boot_of_a_running_agent_leaves_its_instance_ready() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.enrol(SECOND_BOOT))

    assert life.execute(lifecycle.report(1, "healthy", SECOND_BOOT))
    assert life.state.provisioning_stage == "ready"
