"""Decisions about using an instance: configuration, consent, reads of conversations, and usage."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from events import commands as c
from events import types as e
from events.codec import encode
from events.errors import AttemptSuperseded, SequenceGap, TransitionRefused
from events.evolve_use import LEDGERS_KEPT
from events.types import Sealed
from tests import lifecycle
from tests.lifecycle import LEDGER, NOW_MS, InMemoryInstance

CHANGES: tuple[c.AnyCommand, ...] = (
    lifecycle.configure(agent_name="Ada's"),
    c.PatchPlatformConfig(at_ms=NOW_MS, skills=("calculator",)),
    c.ChangeModelPolicy(at_ms=NOW_MS, primary="scripted-1"),
    c.RequestUpdates(at_ms=NOW_MS, config_version=2, restart=True, forced=False),
    c.RecordConversationsAccess(at_ms=NOW_MS, conversation_id="c-1"),
    lifecycle.rotate_key(),
)


@pytest.mark.parametrize("status", ["deleting", "deleted"])
@pytest.mark.parametrize("command", CHANGES, ids=lambda command: type(command).__name__)
def test_an_instance_that_is_deleting_or_deleted_cannot_be_changed(command: c.AnyCommand, status: str) -> None:
    with pytest.raises(TransitionRefused):
        InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[status]).execute(command)


def test_a_configuration_change_records_only_what_changed_and_raises_the_version() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.configure(agent_name="Ada's", model_temperature=0.5))

    (event,) = life.execute(
        lifecycle.configure(agent_name="Ada's", model_temperature=0.7, system_prompt=Sealed("v1.x"))
    )

    assert event == e.ConfigChanged(at_ms=NOW_MS, model_temperature=0.7, system_prompt=Sealed("v1.x"))
    assert (life.state.agent_name, life.state.config.model_temperature) == ("Ada's", 0.7)
    assert life.state.config.version == 3


def test_null_clears_a_field_and_an_omitted_field_stays() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.configure(agent_name="Ada's", recipe_id="r"))

    life.execute(lifecycle.configure(agent_name=None))

    assert (life.state.agent_name, life.state.recipe_id) == (None, "r")


@pytest.mark.parametrize("changes", [{}, {"agent_name": None}, {"workflow_slugs": ()}, {"system_prompt": None}])
def test_values_that_are_already_set_add_no_event(changes: dict[str, Any]) -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert life.execute(lifecycle.configure(**changes)) == ()
    assert life.state.config.version == 1


def test_a_platform_configuration_patch_replaces_the_parts_that_changed() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    life.execute(c.PatchPlatformConfig(at_ms=NOW_MS, integrations=({"id": "x"},), channels=Sealed("v1.c")))
    (event,) = life.execute(c.PatchPlatformConfig(at_ms=NOW_MS, integrations=(), channels=Sealed("v1.c")))

    assert event == e.PlatformConfigPatched(at_ms=NOW_MS, integrations=())
    assert (life.state.config.integrations, life.state.config.channels) == ((), "v1.c")


@pytest.mark.parametrize("field", ["integrations", "skills"])
@pytest.mark.parametrize(("before", "after"), [(1, True), (False, 0), (1, 1.0)])
def test_values_that_only_python_treats_as_equal_are_a_change(field: str, before: Any, after: Any) -> None:
    items: list[dict[str, Any]] = [{field: ({"id": "x", "on": value},)} for value in (before, after)]
    reordered: dict[str, Any] = {field: ({"on": after, "id": "x"},)}
    life = InMemoryInstance.after(*lifecycle.RUNNING, c.PatchPlatformConfig(at_ms=NOW_MS, **items[0]))

    (event,) = life.execute(c.PatchPlatformConfig(at_ms=NOW_MS, **items[1]))

    assert encode(event) == encode(e.PlatformConfigPatched(at_ms=NOW_MS, **items[1]))
    assert life.execute(c.PatchPlatformConfig(at_ms=NOW_MS, **reordered)) == ()


def test_decide_does_not_refuse_a_text_that_cannot_be_stored() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.configure(agent_name="Ada's"))

    assert life.execute(lifecycle.configure(agent_name="\ud800")) == (
        e.ConfigChanged(at_ms=NOW_MS, agent_name="\ud800"),
    )


def test_null_resets_a_field_of_the_model_policy_to_its_default() -> None:
    life = InMemoryInstance.after(
        *lifecycle.RUNNING, c.ChangeModelPolicy(at_ms=NOW_MS, primary="m", budget_daily_usd="1.50")
    )

    (event,) = life.execute(c.ChangeModelPolicy(at_ms=NOW_MS, primary=None))

    assert event == e.ModelPolicyChanged(at_ms=NOW_MS, primary=None)
    policy = life.state.config.model_policy
    assert (policy.primary, policy.budget_daily_usd) == (None, "1.50")


def test_only_a_change_of_consent_adds_an_event() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    assert life.execute(c.ChangeConsent(at_ms=NOW_MS, granted=False)) == ()
    assert life.execute(c.ChangeConsent(at_ms=NOW_MS, granted=True))
    assert life.execute(c.ChangeConsent(at_ms=NOW_MS, granted=True)) == ()
    assert life.state.consent_debug_access


@pytest.mark.parametrize(
    "gone", [(*lifecycle.RUNNING, lifecycle.delete()), lifecycle.DELETED], ids=["deleting", "deleted"]
)
def test_consent_can_be_withdrawn_from_an_instance_that_is_deleting_or_deleted(gone: tuple[c.AnyCommand, ...]) -> None:
    life = InMemoryInstance.after(
        *lifecycle.CREATED, c.ChangeConsent(at_ms=NOW_MS, granted=True), *gone[len(lifecycle.CREATED) :]
    )

    (event,) = life.execute(c.ChangeConsent(at_ms=NOW_MS, granted=False))

    assert event == e.ConsentChanged(at_ms=NOW_MS, granted=False)
    assert not life.state.consent_debug_access


def test_every_read_of_conversations_adds_an_event() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)
    read = c.RecordConversationsAccess(at_ms=NOW_MS, conversation_id="c-1")

    assert len(life.execute(read) + life.execute(read)) == 2


@pytest.mark.parametrize(
    ("command", "event"),
    [
        (
            c.RecordUpdatesApplied(at_ms=NOW_MS, config_version=2, restarted=True, forced=False),
            e.UpdatesApplied(at_ms=NOW_MS, config_version=2, restarted=True, forced=False),
        ),
        (
            c.RecordUpdatesFailed(at_ms=NOW_MS, config_version=2, code="agent_timeout"),
            e.UpdatesFailed(at_ms=NOW_MS, config_version=2, code="agent_timeout"),
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_outcome_of_updates_is_recorded_until_the_instance_is_deleted(
    command: c.AnyCommand, event: e.AnyEvent
) -> None:
    asked = c.RequestUpdates(at_ms=NOW_MS, config_version=2, restart=True, forced=False)

    assert InMemoryInstance.after(*lifecycle.RUNNING, asked).execute(command) == (event,)
    assert InMemoryInstance.after(*lifecycle.RUNNING, asked, lifecycle.delete()).execute(command) == (event,)
    with pytest.raises(TransitionRefused):
        InMemoryInstance.after(*lifecycle.DELETED).execute(command)


# --- usage -----------------------------------------------------------------------------------------------------------


def test_usage_batches_are_recorded_in_order_and_once_each() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING)

    first = life.execute(lifecycle.usage(1))
    again = life.execute(lifecycle.usage(1, cost_usd="99"))
    second = life.execute(lifecycle.usage(2))

    assert (len(first), again, len(second)) == (1, (), 1)
    assert life.state.usage_seqs == {str(LEDGER): 2}


def test_an_agent_that_invents_ledgers_does_not_make_the_state_grow_without_limit() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.usage(1))

    for number in range(1, LEDGERS_KEPT + 10):
        life.execute(lifecycle.usage(2) if number == LEDGERS_KEPT else lifecycle.usage(1, ledger_id=UUID(int=number)))

    assert len(life.state.usage_seqs) == LEDGERS_KEPT
    assert life.state.usage_seqs[str(LEDGER)] == 2, "the one that is in use is kept"


def test_a_usage_batch_ahead_of_its_sequence_is_refused_with_the_expected_number() -> None:
    with pytest.raises(SequenceGap) as refusal:
        InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.usage(1)).execute(lifecycle.usage(3))

    assert refusal.value.expected_seq == 2


def test_each_ledger_numbers_its_usage_batches_on_its_own() -> None:
    life = InMemoryInstance.after(*lifecycle.RUNNING, lifecycle.usage(1), lifecycle.usage(2))

    assert life.execute(lifecycle.usage(1, ledger_id=UUID(int=7)))


def test_usage_is_recorded_until_the_instance_is_deleted() -> None:
    assert InMemoryInstance.after(*lifecycle.DELETING).execute(lifecycle.usage(1))
    with pytest.raises(AttemptSuperseded):
        InMemoryInstance.after(*lifecycle.DELETED).execute(lifecycle.usage(1))
