"""The part of the fold that concerns the use of an instance: its configuration, consent, and what it spent."""

from __future__ import annotations

import re
from typing import Any, Final, cast

from msgspec import UNSET
from msgspec.structs import asdict, replace

from events import types as e
from events.state import SEALED_OF_CONFIG, SEALED_OF_INSTANCE, Instance

#: What `events.keys` makes: a nonce of 12 bytes, and at least the 16 of the tag behind it.
_SEALED_TEXT: Final = re.compile(r"v1\.[A-Za-z0-9_-]{38,}={0,2}", re.ASCII)

#: How many ledgers are remembered. An agent begins one when its disk is new; more than a few are an agent that makes them up.
LEDGERS_KEPT: Final = 64

#: Fields of configuration events that the instance itself has; all others are its configuration's.
_OF_INSTANCE = frozenset({"agent_name", "recipe_id", "workflow_slugs"})


def configured(state: Instance, event: e.ConfigChanged | e.PlatformConfigPatched | e.ModelPolicyChanged) -> None:
    """What the event sets; every such event is a new version of the configuration."""
    changes = set_fields(event)
    if state.erased_ms is not None:
        # Sealed a moment before the key was destroyed, and recorded a moment after: nobody can read it.
        changes = {name: None if name in SEALED_OF_CONFIG else without_sealed(value) for name, value in changes.items()}
    version = state.config.version + 1
    if isinstance(event, e.ModelPolicyChanged):
        policy = replace(state.config.model_policy, **changes)
        state.config = replace(state.config, version=version, model_policy=policy)
        return
    for name in _OF_INSTANCE & changes.keys():
        setattr(state, name, changes.pop(name))
    state.config = replace(state.config, version=version, **changes)


def consent_changed(state: Instance, event: e.ConsentChanged) -> None:
    state.consent_debug_access = event.granted


def unchanged(
    _state: Instance, _event: e.UpdatesRequested | e.UpdatesApplied | e.UpdatesFailed | e.ConversationsAccessed
) -> None:
    """History only: nothing is decided by it."""


def usage_recorded(state: Instance, event: e.UsageRecorded) -> None:
    ledger, seqs = str(event.ledger_id), {**state.usage_seqs}
    # What is in use stands last: what was so longest ago is forgotten first.
    seqs.pop(ledger, None)
    seqs[ledger] = event.seq
    if len(seqs) > LEDGERS_KEPT:
        del seqs[next(iter(seqs))]
    state.usage_seqs = seqs


def customer_erased(state: Instance, event: e.CustomerErased) -> None:
    """No sealed field is left. The configuration has a new version, so that the agent drops what it was given."""
    state.config = replace(
        state.config,
        version=state.config.version + 1,
        integrations=without_sealed(state.config.integrations),
        skills=without_sealed(state.config.skills),
        **dict.fromkeys(SEALED_OF_CONFIG),
    )
    for name in SEALED_OF_INSTANCE:
        setattr(state, name, None)
    state.erased_ms = event.at_ms


def without_sealed(value: Any) -> Any:
    """`value` with null for every sealed text in it: lists are kept in the clear, but for the secrets among them."""
    if isinstance(value, dict):
        return {name: without_sealed(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [without_sealed(item) for item in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    return None if looks_sealed(value) else value


def looks_sealed(value: object) -> bool:
    """Whether it has the form of a sealed text: what is shown of a list has no such text in it."""
    return isinstance(value, str) and _SEALED_TEXT.fullmatch(value) is not None


def set_fields(changes: Any) -> dict[str, Any]:
    """The fields of a configuration event or command that are set, without the time."""
    return {name: value for name, value in asdict(changes).items() if value is not UNSET and name != "at_ms"}
