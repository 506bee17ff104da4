"""Erasing a customer, in the state of an instance: every sealed field is cleared, in every status, and none comes back."""

from __future__ import annotations

from typing import get_args, get_type_hints

import msgspec
import pytest

from events import commands as c
from events import types as e
from events.state import SEALED_OF_CONFIG, SEALED_OF_INSTANCE, Config, Instance
from events.types import Sealed
from projections.instance import row_of
from tests import lifecycle
from tests.lifecycle import NOW_MS, InMemoryInstance

ERASE = c.EraseCustomer(at_ms=NOW_MS)
SECRET = Sealed("v1.c2VjcmV0")

#: A life whose every sealed field has a value.
FULL = (
    lifecycle.request(customer_email=SECRET, user_display_name=SECRET),
    *lifecycle.RUNNING[1:],
    lifecycle.configure(system_prompt=SECRET, customer_facing_prompt=SECRET, telegram_bot_token=SECRET),
    c.PatchPlatformConfig(at_ms=NOW_MS, advanced=SECRET, channels=SECRET),
)


def sealed_fields(of: type[msgspec.Struct]) -> set[str]:
    return {name for name, hint in get_type_hints(of).items() if Sealed in get_args(hint)}


def test_the_erasure_covers_every_sealed_field_of_the_state() -> None:
    assert sealed_fields(Instance) == set(SEALED_OF_INSTANCE)
    assert sealed_fields(Config) == set(SEALED_OF_CONFIG)


def test_an_erasure_leaves_no_ciphertext_in_the_state_or_in_its_row() -> None:
    life = InMemoryInstance.after(*FULL)
    assert msgspec.json.encode(life.state).count(SECRET.encode()) == len(SEALED_OF_INSTANCE) + len(SEALED_OF_CONFIG)

    (event,) = life.execute(ERASE)

    assert event == e.CustomerErased(at_ms=NOW_MS)
    assert SECRET.encode() not in msgspec.json.encode(life.state)
    assert row_of(life.state, lane=0)["customer_email"] is None
    assert life.state.erased_ms == NOW_MS


def test_an_erasure_clears_the_secrets_within_lists_and_keeps_the_rest() -> None:
    sealed = "v1." + "QUJD" * 12
    lists = {"integrations": ({"id": "mail", "token": sealed}, "v1.2 of it"), "skills": ("calculator", [sealed])}
    life = InMemoryInstance.after(*lifecycle.RUNNING, c.PatchPlatformConfig(at_ms=NOW_MS, **lists))

    life.execute(ERASE)

    assert life.state.config.integrations == ({"id": "mail", "token": None}, "v1.2 of it")
    assert life.state.config.skills == ("calculator", [None])


def test_an_erasure_raises_the_version_of_the_configuration() -> None:
    life = InMemoryInstance.after(*FULL)
    version = life.state.config.version

    life.execute(ERASE)

    assert life.state.config.version == version + 1


@pytest.mark.parametrize("status", lifecycle.COMMANDS_TO_STATUS)
def test_an_erasure_is_recorded_once_in_every_status_and_does_not_change_the_status(status: str) -> None:
    life = InMemoryInstance.after(*lifecycle.COMMANDS_TO_STATUS[status])

    first, second = life.execute(ERASE), life.execute(ERASE)

    assert (len(first), second) == (1, ())
    assert life.state.status == status


def test_sealed_values_that_arrive_after_the_erasure_are_not_kept() -> None:
    life = InMemoryInstance.after(*FULL, ERASE)

    assert life.execute(lifecycle.configure(agent_name="Bob's", system_prompt=SECRET))

    assert (life.state.agent_name, life.state.config.system_prompt) == ("Bob's", None)
