"""The lifecycle: every status and trigger of the table, and every command that could move an instance."""

from __future__ import annotations

import pytest

from events import commands as c
from events import lifecycle
from events.errors import TransitionRefused
from events.lifecycle import STATUSES, TRANSITIONS, Status, Trigger, destination
from tests import lifecycle as instance_lifecycle
from tests.lifecycle import COMMANDS_TO_STATUS, InMemoryInstance

#: What each trigger leads to, by the status before. What is missing must be refused.
TABLE: dict[Trigger, dict[Status, Status]] = {
    "provision": {"pending": "provisioning"},
    "become_ready": {"provisioning": "running"},
    "fail": dict.fromkeys(("pending", "provisioning"), "failed"),
    "lose": {"running": "error"},
    "delete": dict.fromkeys(("pending", "provisioning", "running", "failed", "error"), "deleting"),
    "finish_deletion": {"deleting": "deleted"},
}

CELLS = [(trigger, source) for trigger in TABLE for source in STATUSES]

#: The command that pulls each trigger, fitted to the ways in `tests.lifecycle`.
MOVES: dict[Trigger, c.AnyCommand] = {
    "provision": instance_lifecycle.plan(),
    "become_ready": instance_lifecycle.mark_ready(),
    "fail": instance_lifecycle.gave_up(),
    "lose": instance_lifecycle.vanished(),
    "delete": instance_lifecycle.delete(),
    "finish_deletion": instance_lifecycle.finish(),
}

#: How far an instance must have come within its status for the trigger to be accepted.
READY_TO = {
    ("become_ready", "provisioning"): instance_lifecycle.HEALTHY,
    ("fail", "provisioning"): instance_lifecycle.ATTEMPT_DISCARDED,
    ("finish_deletion", "deleting"): instance_lifecycle.TORN_DOWN,
}


@pytest.mark.parametrize(("trigger", "source"), CELLS)
def test_the_lifecycle_table_has_exactly_the_expected_transitions(trigger: Trigger, source: Status) -> None:
    assert destination(trigger, source=source) == TABLE[trigger].get(source)


def test_the_lifecycle_has_no_trigger_and_no_status_outside_the_table() -> None:
    triggers = {trigger for trigger, _, _ in TRANSITIONS}

    assert triggers == TABLE.keys()
    assert set(STATUSES) == COMMANDS_TO_STATUS.keys() == {state.name for state in lifecycle.machine().states.values()}


def test_every_status_but_pending_can_be_reached_and_none_follows_deleted() -> None:
    reached = {destination for _, _, destination in TRANSITIONS}

    assert reached == set(STATUSES) - {"pending"}
    assert not [row for row in TRANSITIONS if row[1] == "deleted"]


@pytest.mark.parametrize(("trigger", "source"), CELLS)
def test_a_command_moves_an_instance_where_the_table_says_and_nowhere_else(trigger: Trigger, source: Status) -> None:
    life = InMemoryInstance.after(*READY_TO.get((trigger, source), COMMANDS_TO_STATUS[source]))
    assert life.state.status == source

    try:
        moved = bool(life.execute(MOVES[trigger]))
    except TransitionRefused as refusal:
        assert refusal.status == source
        moved = False

    assert life.state.status == TABLE[trigger].get(source, source)
    assert moved == (source in TABLE[trigger])


@pytest.mark.parametrize("status", STATUSES)
def test_a_delete_is_legal_from_every_status_and_the_second_one_is_a_no_op(status: Status) -> None:
    life = InMemoryInstance.after(*COMMANDS_TO_STATUS[status])

    life.execute(instance_lifecycle.delete())
    second = life.execute(instance_lifecycle.delete())

    assert life.state.status in {"deleting", "deleted"}
    assert second == ()


def test_a_refused_transition_says_what_cannot_be_done_in_which_status() -> None:
    life = InMemoryInstance.after(*COMMANDS_TO_STATUS["running"])

    with pytest.raises(TransitionRefused, match="An instance that is running cannot plan another server"):
        life.execute(instance_lifecycle.plan(2))
