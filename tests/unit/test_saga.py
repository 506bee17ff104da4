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
from tests import lives
from tests.lives import NOW_MS, SECOND_BOOT, Life

Way = tuple[c.AnyCommand, ...]

DEADLINE_MS = NOW_MS + 900_000

LAST_ATTEMPT_DISCARDED: Way = (
    *lives.PENDING,
    *(
        command
        for attempt in range(1, ATTEMPTS_MAX + 1)
        for command in (lives.plan(attempt), lives.failed(attempt), lives.discarded(attempt))
    ),
)

STEPS: list[tuple[str, Way, type]] = [
    ("just requested", lives.PENDING, PlanAttempt),
    ("a server is intended", lives.INTENDED, EnsureServer),
    ("the agent was faster than the create reply", (*lives.INTENDED, lives.enrol()), EnsureServer),
    ("the server is made", lives.CREATED, AwaitAgent),
    ("the server runs", lives.OBSERVED, AwaitAgent),
    ("the agent has enrolled", lives.ENROLLED, AwaitAgent),
    ("the agent has its key", lives.KEYED, AwaitAgent),
    ("the agent says it is healthy", lives.HEALTHY, VerifyAgent),
    ("the agent restarted before it was verified", (*lives.HEALTHY, lives.enrol(SECOND_BOOT)), AwaitAgent),
    ("the attempt failed", lives.ATTEMPT_FAILED, DiscardServer),
    ("the attempt failed and nothing was made", (*lives.INTENDED, lives.failed(nothing_made=True)), DiscardServer),
    ("the failed attempt is gone", lives.ATTEMPT_DISCARDED, PlanAttempt),
    ("no placement can help", (*lives.CREATED, lives.failed(retryable=False), lives.discarded()), AbandonProvisioning),
    ("the last attempt is gone", LAST_ATTEMPT_DISCARDED, AbandonProvisioning),
    ("running", lives.RUNNING, Idle),
    ("failed", lives.FAILED, Idle),
    ("lost", lives.LOST, Idle),
    ("deletion requested", lives.DELETING, TearDown),
    ("deletion requested at once", (*lives.PENDING, lives.delete()), TearDown),
    ("torn down", lives.TORN_DOWN, FinishDeletion),
    ("deleted", lives.DELETED, Idle),
]


@pytest.mark.parametrize(("way", "step"), [row[1:] for row in STEPS], ids=[row[0] for row in STEPS])
def test_every_point_of_a_life_has_the_expected_next_step(way: Way, step: type) -> None:
    assert type(next_step(Life.after(*way).state)) is step


@pytest.mark.parametrize("way", [row[1] for row in STEPS], ids=[row[0] for row in STEPS])
def test_an_instance_has_a_wake_time_if_and_only_if_it_has_a_next_step(way: Way) -> None:
    state = Life.after(*way).state

    assert (wake_at_ms(state) is None) == isinstance(next_step(state), Idle)


def test_work_is_due_at_once_and_a_wait_for_an_agent_at_its_deadline() -> None:
    assert wake_at_ms(Life.after(*lives.PENDING).state) == NOW_MS
    assert wake_at_ms(Life.after(*lives.HEALTHY).state) == NOW_MS
    assert wake_at_ms(Life.after(*lives.CREATED).state) == DEADLINE_MS


def test_attempts_are_planned_with_consecutive_numbers() -> None:
    assert next_step(Life.after(*lives.PENDING).state) == PlanAttempt(number=1)
    assert next_step(Life.after(*lives.ATTEMPT_DISCARDED).state) == PlanAttempt(number=2)


def test_provisioning_is_abandoned_with_the_last_failure_as_the_reason() -> None:
    assert next_step(Life.after(*LAST_ATTEMPT_DISCARDED).state) == AbandonProvisioning(code="resource_unavailable")


@pytest.mark.parametrize("status", ["running", "failed", "error", "deleted"])
def test_an_idle_instance_gives_its_status_as_the_reason(status: str) -> None:
    assert next_step(Life.after(*lives.WAYS[status]).state) == Idle(status=status)  # type: ignore[arg-type]


@pytest.mark.parametrize("done", range(len(TEARDOWN_STEPS)))
def test_a_teardown_takes_its_steps_in_order(done: int) -> None:
    life = Life.after(*lives.DELETING, *map(lives.teardown, TEARDOWN_STEPS[:done]))

    assert next_step(life.state) == TearDown(step=TEARDOWN_STEPS[done])


@pytest.mark.parametrize("way", [row[1] for row in STEPS[:14]], ids=[row[0] for row in STEPS[:14]])
def test_a_deletion_replaces_any_next_step_by_the_first_teardown_step(way: Way) -> None:
    life = Life.after(*way, lives.delete())

    assert next_step(life.state) == TearDown(step="key_revoked")
