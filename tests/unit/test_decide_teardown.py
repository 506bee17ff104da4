"""Decisions about the end of an instance: the teardown steps in their order, each of them once."""

from __future__ import annotations

import pytest

from events import commands as c
from events import types as e
from events.errors import Rejected, TransitionRefused
from events.state import TEARDOWN_STEPS
from tests import lifecycle
from tests.lifecycle import KEY, NOW_MS, InMemoryInstance

#: Commands that the saga of an instance sends late, after the instance was deleted.
LATE: tuple[c.AnyCommand, ...] = (
    lifecycle.created(server_id="999"),
    lifecycle.observed(),
    lifecycle.failed(),
    lifecycle.discarded(),
    lifecycle.mark_ready(),
    lifecycle.health("late"),
    lifecycle.vanished(),
    lifecycle.delete(),
    *(lifecycle.teardown(step) for step in TEARDOWN_STEPS),
    lifecycle.block("drained"),
    lifecycle.finish(),
)


def test_a_deletion_records_its_reason_and_its_time() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert life.execute(lifecycle.delete("requested by admin")) == (
        e.DeletionRequested(at_ms=NOW_MS, reason="requested by admin"),
    )
    assert life.state.deletion_requested_ms == NOW_MS


def test_the_teardown_steps_are_done_in_order_and_then_the_deletion_is_complete() -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING)

    for step in TEARDOWN_STEPS:
        assert life.state.teardown_step == step
        assert life.execute(lifecycle.teardown(step))
    (last,) = life.execute(lifecycle.finish())

    assert last == e.InstanceDeleted(at_ms=NOW_MS)
    assert (life.state.status, life.state.deleted_ms, life.state.health) == ("deleted", NOW_MS, None)


@pytest.mark.parametrize("done", range(1, len(TEARDOWN_STEPS) + 1))
def test_a_teardown_step_that_was_done_is_not_recorded_again(done: int) -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, *map(lifecycle.teardown, TEARDOWN_STEPS[:done]))

    assert life.execute(lifecycle.teardown(TEARDOWN_STEPS[done - 1])) == ()


@pytest.mark.parametrize("step", TEARDOWN_STEPS[1:])
def test_no_other_teardown_step_is_done_before_the_key_is_revoked(step: e.TeardownStep) -> None:
    with pytest.raises(Rejected, match=f"Teardown step {step} before key_revoked"):
        InMemoryInstance.after(*lifecycle.DELETING).execute(lifecycle.teardown(step))


@pytest.mark.parametrize("done", range(len(TEARDOWN_STEPS)))
def test_a_deletion_is_not_complete_before_its_last_step(done: int) -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, *map(lifecycle.teardown, TEARDOWN_STEPS[:done]))

    with pytest.raises(TransitionRefused):
        life.execute(lifecycle.finish())


def test_the_first_teardown_step_revokes_the_key_that_is_in_force() -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING)

    assert life.execute(lifecycle.teardown("key_revoked")) == (
        e.AgentKeyRevoked(at_ms=NOW_MS, key_id=KEY, reason="deletion"),
        e.TeardownStepDone(at_ms=NOW_MS, step="key_revoked"),
    )
    assert life.state.agent is not None
    assert (life.state.agent.key_hash, life.state.agent.control_key_id) == (None, KEY)
    assert life.state.agent.leaving_key_id == KEY


@pytest.mark.parametrize("way", [lifecycle.PENDING, lifecycle.ENROLLED, (*lifecycle.RUNNING, lifecycle.rotate_key())])
def test_the_first_teardown_step_revokes_nothing_when_no_key_is_in_force(way: tuple[c.AnyCommand, ...]) -> None:
    life = InMemoryInstance.after(*way, lifecycle.delete())

    assert life.execute(lifecycle.teardown("key_revoked")) == (e.TeardownStepDone(at_ms=NOW_MS, step="key_revoked"),)


def test_once_its_server_s_absence_is_verified_an_instance_has_no_server_any_more() -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, *map(lifecycle.teardown, TEARDOWN_STEPS[:4]))

    assert life.state.attempt is not None
    assert not life.state.attempt.may_have_server


def test_a_blocked_teardown_is_recorded_once_per_reason_and_cleared_once_the_step_is_done() -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING)

    first = life.execute(lifecycle.block("key_revoked", "locked"))
    second = life.execute(lifecycle.block("key_revoked", "locked"))
    other = life.execute(lifecycle.block("key_revoked", "unavailable"))
    life.execute(lifecycle.teardown("key_revoked"))

    assert (len(first), second, len(other)) == (1, (), 1)
    assert (life.state.teardown_blocked, life.state.error_code) == (None, None)


@pytest.mark.parametrize("step", ["key_revoked", "server_deleted"])
def test_a_block_of_a_teardown_step_that_is_not_the_current_one_is_ignored(step: e.TeardownStep) -> None:
    life = InMemoryInstance.after(*lifecycle.DELETING, lifecycle.teardown("key_revoked"))

    assert life.execute(lifecycle.block(step)) == ()


@pytest.mark.parametrize("status", ["pending", "provisioning", "running", "failed", "error"])
@pytest.mark.parametrize(
    "command", [lifecycle.teardown("key_revoked"), lifecycle.block("key_revoked"), lifecycle.finish()]
)
def test_teardown_commands_do_nothing_without_a_requested_deletion(command: c.AnyCommand, status: str) -> None:
    assert InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[status]).execute(command) == ()


@pytest.mark.parametrize("command", LATE, ids=str)
def test_late_commands_change_nothing_in_a_deleted_instance(command: c.AnyCommand) -> None:
    assert InMemoryInstance.after(*lifecycle.DELETED).execute(command) == ()
