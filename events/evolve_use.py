"""The part of the fold that concerns the use of an instance: its configuration, consent and usage. See `events.evolve`."""

from __future__ import annotations

import re
from typing import Any, Final, cast

from msgspec import UNSET
from msgspec.structs import asdict, replace

from events import types as e
from events.state import SEALED_OF_CONFIG, SEALED_OF_INSTANCE, Instance

#: The format of a text that `events.keys` seals: a nonce of 12 bytes, then at least the 16 bytes of the tag.
_SEALED_TEXT: Final = re.compile(r"v1\.[A-Za-z0-9_-]{38,}={0,2}", re.ASCII)

#: The most ledgers whose last batch is kept. An agent begins a ledger when its disk is new; more than a few are made up by an agent.
LEDGERS_KEPT: Final = 64

#: The fields of configuration events that are the instance's own; all others belong to its configuration.
_OF_INSTANCE = frozenset({"agent_name", "recipe_id", "workflow_slugs"})


def config_changed(state: Instance, event: e.ConfigChanged | e.PlatformConfigPatched | e.ModelPolicyChanged) -> None:
    """Apply a configuration event. Each one makes a new version of the configuration."""
    changes = set_fields(event)
    if state.erased_ms is not None:
        # It was sealed before the key was destroyed, and recorded after: nobody can read it.
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
    """Events that no decision depends on. They change nothing."""


def usage_recorded(state: Instance, event: e.UsageRecorded) -> None:
    ledger, seqs = str(event.ledger_id), {**state.usage_seqs}
    # The ledger that was used last is put at the end; the one at the beginning is forgotten first.
    seqs.pop(ledger, None)
    seqs[ledger] = event.seq
    if len(seqs) > LEDGERS_KEPT:
        del seqs[next(iter(seqs))]
    state.usage_seqs = seqs


def customer_erased(state: Instance, event: e.CustomerErased) -> None:
    """Clear all sealed fields. The configuration gets a new version, so that the agent drops the values that it has."""
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
    """`value` with every sealed text in it replaced by null: lists are stored in plain text, except for the secrets in them."""
    if isinstance(value, dict):
        return {name: without_sealed(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [without_sealed(item) for item in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    return None if looks_sealed(value) else value


def looks_sealed(value: object) -> bool:
    """Whether `value` has the format of a sealed text."""
    return isinstance(value, str) and _SEALED_TEXT.fullmatch(value) is not None


def set_fields(changes: Any) -> dict[str, Any]:
    """The fields of a configuration event or command that are set, without its time."""
    return {name: value for name, value in asdict(changes).items() if value is not UNSET and name != "at_ms"}
