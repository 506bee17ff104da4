"""The next step of an instance at every point of its life, and when it is due."""

from __future__ import annotations

import pytest

from events import commands as c
from events.saga import (
    AbandonProvisioning,
    AwaitAgent,
    DiscardServer,
    EnsureServer,
    FinishDeletion,
    Idle,
    PlanAttempt,
    TearDown,
    VerifyAgent,
    next_step,
    wake_at_ms,
)
from events.state import ATTEMPTS_MAX, TEARDOWN_STEPS
from tests import lifecycle
from tests.lifecycle import NOW_MS, SECOND_BOOT, InMemoryInstance

Way = tuple[c.AnyCommand, ...]

DEADLINE_MS = NOW_MS + 900_000

LAST_ATTEMPT_DISCARDED: Way = (
    *lifecycle.PENDING,
    *(
        command
        for attempt in range(1, ATTEMPTS_MAX + 1)
        for command in (lifecycle.plan(attempt), lifecycle.failed(attempt), lifecycle.discarded(attempt))
    ),
)

STEPS: list[tuple[str, Way, type]] = [
    ("just requested", lifecycle.PENDING, PlanAttempt),
    ("a server is intended", lifecycle.INTENDED, EnsureServer),
    ("the agent was faster than the create reply", (*lifecycle.INTENDED, lifecycle.enrol()), EnsureServer),
    ("the server is made", lifecycle.CREATED, AwaitAgent),
    ("the server runs", lifecycle.OBSERVED, AwaitAgent),
    ("the agent has enrolled", lifecycle.ENROLLED, AwaitAgent),
    ("the agent has its key", lifecycle.KEYED, AwaitAgent),
    ("the agent says it is healthy", lifecycle.HEALTHY, VerifyAgent),
    ("the agent restarted before it was verified", (*lifecycle.HEALTHY, lifecycle.enrol(SECOND_BOOT)), AwaitAgent),
    ("the attempt failed", lifecycle.ATTEMPT_FAILED, DiscardServer),
    (
        "the attempt failed and nothing was made",
        (*lifecycle.INTENDED, lifecycle.failed(nothing_made=True)),
        DiscardServer,
    ),
    ("the failed attempt is gone", lifecycle.ATTEMPT_DISCARDED, PlanAttempt),
    (
        "no placement can help",
        (*lifecycle.CREATED, lifecycle.failed(retryable=False), lifecycle.discarded()),
        AbandonProvisioning,
    ),
    ("the last attempt is gone", LAST_ATTEMPT_DISCARDED, AbandonProvisioning),
    ("running", lifecycle.RUNNING, Idle),
    ("failed", lifecycle.FAILED, Idle),
    ("lost", lifecycle.LOST, Idle),
    ("deletion requested", lifecycle.DELETING, TearDown),
    ("deletion requested at once", (*lifecycle.PENDING, lifecycle.delete()), TearDown),
    ("torn down", lifecycle.TORN_DOWN, FinishDeletion),
    ("deleted", lifecycle.DELETED, Idle),
]


@pytest.mark.parametrize(("way", "step"), [row[1:] for row in STEPS], ids=[row[0] for row in STEPS])
def test_every_point_of_a_life_has_the_expected_next_step(way: Way, step: type) -> None:
    assert type(next_step(InMemoryInstance.after(*way).state)) is step


@pytest.mark.parametrize("way", [row[1] for row in STEPS], ids=[row[0] for row in STEPS])
def test_an_instance_has_a_wake_time_if_and_only_if_it_has_a_next_step(way: Way) -> None:
    state = InMemoryInstance.after(*way).state

    assert (wake_at_ms(state) is None) == isinstance(next_step(state), Idle)


def test_work_is_due_at_once_and_a_wait_for_an_agent_at_its_deadline() -> None:
    assert wake_at_ms(InMemoryInstance.after(*lifecycle.PENDING).state) == NOW_MS
    assert wake_at_ms(InMemoryInstance.after(*lifecycle.HEALTHY).state) == NOW_MS
    assert wake_at_ms(InMemoryInstance.after(*lifecycle.CREATED).state) == DEADLINE_MS


def test_attempts_are_planned_with_consecutive_numbers() -> None:
    assert next_step(InMemoryInstance.after(*lifecycle.PENDING).state) == PlanAttempt(number=1)
    assert next_step(InMemoryInstance.after(*lifecycle.ATTEMPT_DISCARDED).state) == PlanAttempt(number=2)


def test_provisioning_is_abandoned_with_the_last_failure_as_the_reason() -> None:
    assert next_step(InMemoryInstance.after(*LAST_ATTEMPT_DISCARDED).state) == AbandonProvisioning(
        code="resource_unavailable"
    )


@pytest.mark.parametrize("status", ["running", "failed", "error", "deleted"])
def test_an_idle_instance_gives_its_status_as_the_reason(status: str) -> None:
    assert next_step(InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[status]).state) == Idle(status=status)  # type: ignore[arg-type]


@pytest.mark.parametrize("done", range(len(TEARDOWN_STEPS)))
def test_a_teardown_takes_its_steps_in_order(done: int) -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, *map(lifecycle.teardown, TEARDOWN_STEPS[:done]))

    assert next_step(life.state) == TearDown(step=TEARDOWN_STEPS[done])


@pytest.mark.parametrize("way", [row[1] for row in STEPS[:14]], ids=[row[0] for row in STEPS[:14]])
def test_a_deletion_replaces_any_next_step_by_the_first_teardown_step(way: Way) -> None:
    life = InMemoryInstance.after(*way, lifecycle.delete())

    assert next_step(life.state) == TearDown(step="key_revoked")
