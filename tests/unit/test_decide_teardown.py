"""Decisions about the end of an instance: the steps in their order, once each, and what the last one leaves."""

from __future__ import annotations

import pytest

from events import commands as c
from events import types as e
from events.errors import Rejected, TransitionRefused
from events.state import TEARDOWN_STEPS
from tests import lives
from tests.lives import KEY, NOW_MS, Life

#: What comes in late from the saga of an instance that has been deleted in the meantime.
LATE: tuple[c.AnyCommand, ...] = (
    lives.created(server_id="999"),
    lives.observed(),
    lives.failed(),
    lives.discarded(),
    lives.mark_ready(),
    lives.health("late"),
    lives.vanished(),
    lives.delete(),
    *(lives.teardown(step) for step in TEARDOWN_STEPS),
    lives.block("drained"),
    lives.finish(),
)


def test_a_deletion_says_why() -> None:
    life = Life.after(*lives.RUNNING)

    assert life.give(lives.delete("requested by admin")) == (
        e.DeletionRequested(at_ms=NOW_MS, reason="requested by admin"),
    )
    assert life.state.deletion_requested_ms == NOW_MS


def test_the_steps_are_done_in_order_and_then_the_deletion_is_complete() -> None:
    life = Life.after(*lives.DELETING)

    for step in TEARDOWN_STEPS:
        assert life.state.teardown_step == step
        assert life.give(lives.teardown(step))
    (last,) = life.give(lives.finish())

    assert last == e.InstanceDeleted(at_ms=NOW_MS)
    assert (life.state.status, life.state.deleted_ms, life.state.health) == ("deleted", NOW_MS, None)


@pytest.mark.parametrize("done", range(1, len(TEARDOWN_STEPS) + 1))
def test_a_step_that_was_done_is_not_done_again(done: int) -> None:
    life = Life.after(*lives.DELETING, *map(lives.teardown, TEARDOWN_STEPS[:done]))

    assert life.give(lives.teardown(TEARDOWN_STEPS[done - 1])) == ()


@pytest.mark.parametrize("step", TEARDOWN_STEPS[1:])
def test_no_step_is_done_before_the_one_it_stands_on(step: e.TeardownStep) -> None:
    with pytest.raises(Rejected, match=f"Teardown step {step} before key_revoked"):
        Life.after(*lives.DELETING).give(lives.teardown(step))


@pytest.mark.parametrize("done", range(len(TEARDOWN_STEPS)))
def test_a_deletion_is_not_complete_before_its_last_step(done: int) -> None:
    life = Life.after(*lives.DELETING, *map(lives.teardown, TEARDOWN_STEPS[:done]))

    with pytest.raises(TransitionRefused):
        life.give(lives.finish())


def test_the_first_step_revokes_the_key_that_is_in_force() -> None:
    life = Life.after(*lives.DELETING)

    assert life.give(lives.teardown("key_revoked")) == (
        e.AgentKeyRevoked(at_ms=NOW_MS, key_id=KEY, reason="deletion"),
        e.TeardownStepDone(at_ms=NOW_MS, step="key_revoked"),
    )
    assert life.state.agent is not None
    assert (life.state.agent.key_hash, life.state.agent.control_key_id) == (None, KEY)
    assert life.state.agent.leaving_key_id == KEY


@pytest.mark.parametrize("way", [lives.PENDING, lives.ENROLLED, (*lives.RUNNING, lives.rotate_key())])
def test_where_no_key_is_in_force_none_is_revoked(way: tuple[c.AnyCommand, ...]) -> None:
    life = Life.after(*way, lives.delete())

    assert life.give(lives.teardown("key_revoked")) == (e.TeardownStepDone(at_ms=NOW_MS, step="key_revoked"),)


def test_once_absence_is_verified_there_is_no_server_to_look_for() -> None:
    life = Life.after(*lives.DELETING, *map(lives.teardown, TEARDOWN_STEPS[:4]))

    assert life.state.attempt is not None
    assert not life.state.attempt.may_have_server


def test_a_blocked_teardown_says_so_once_per_reason_and_goes_on() -> None:
    life = Life.after(*lives.DELETING)

    first = life.give(lives.block("key_revoked", "locked"))
    second = life.give(lives.block("key_revoked", "locked"))
    other = life.give(lives.block("key_revoked", "unavailable"))
    life.give(lives.teardown("key_revoked"))

    assert (len(first), second, len(other)) == (1, (), 1)
    assert (life.state.teardown_blocked, life.state.error_code) == (None, None)


@pytest.mark.parametrize("step", ["key_revoked", "server_deleted"])
def test_an_alarm_about_a_step_that_is_not_the_current_one_is_late(step: e.TeardownStep) -> None:
    life = Life.after(*lives.DELETING, lives.teardown("key_revoked"))

    assert life.give(lives.block(step)) == ()


@pytest.mark.parametrize("status", ["pending", "provisioning", "running", "failed", "error"])
@pytest.mark.parametrize("command", [lives.teardown("key_revoked"), lives.block("key_revoked"), lives.finish()])
def test_nothing_is_torn_down_that_nobody_wants_deleted(command: c.AnyCommand, status: str) -> None:
    assert Life.after(*lives.WAYS[status]).give(command) == ()


@pytest.mark.parametrize("command", LATE, ids=str)
def test_nothing_happens_to_a_deleted_instance(command: c.AnyCommand) -> None:
    assert Life.after(*lives.DELETED).give(command) == ()
