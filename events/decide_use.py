"""Decisions about the use of an instance: its configuration, consent, updates, usage, and the rotation of its key."""

from __future__ import annotations

from typing import assert_never

import msgspec
from msgspec.structs import asdict

from events import commands as c
from events import types as e
from events.errors import AttemptSuperseded, SequenceGap, TransitionRefused
from events.evolve_use import set_fields
from events.lifecycle import DELETED, DELETING
from events.state import Instance

UseCommand = (
    c.ChangeConfig
    | c.PatchPlatformConfig
    | c.ChangeModelPolicy
    | c.ChangeConsent
    | c.RequestUpdates
    | c.RecordUpdatesApplied
    | c.RecordUpdatesFailed
    | c.RecordConversationsAccess
    | c.RecordUsage
    | c.RotateAgentKey
)

#: For comparisons: the same JSON gives the same bytes. In Python `1`, `1.0` and `True` are equal.
_canonical = msgspec.json.Encoder(order="deterministic").encode


def decide_use(state: Instance, command: UseCommand) -> tuple[e.AnyEvent, ...]:
    """The events that `command` causes at `state`. Raises a subclass of `Rejected`."""
    if isinstance(command, c.RecordUsage):
        return _record_usage(state, command)
    if isinstance(command, c.RecordUpdatesApplied | c.RecordUpdatesFailed):
        return _record_updates(state, command)
    if isinstance(command, c.ChangeConsent):
        return _change_consent(state, command)
    require_changeable(state)
    match command:
        case c.ChangeConfig() | c.PatchPlatformConfig() | c.ChangeModelPolicy():
            return _change_config(state, command)
        case c.RequestUpdates():
            return (e.UpdatesRequested(**asdict(command)),)
        case c.RecordConversationsAccess():
            return (e.ConversationsAccessed(at_ms=command.at_ms, conversation_id=command.conversation_id),)
        case c.RotateAgentKey():
            if state.agent is None or state.agent.key_id is None:
                return ()
            return (e.AgentKeyRevoked(at_ms=command.at_ms, key_id=state.agent.key_id, reason="rotation"),)
        case _:
            assert_never(command)


def require_changeable(state: Instance) -> None:
    """Raises `TransitionRefused` where the instance is being deleted, or is."""
    if state.status in {DELETING, DELETED}:
        raise TransitionRefused(state.id, trigger="be_changed", status=state.status)


def _change_consent(state: Instance, command: c.ChangeConsent) -> tuple[e.AnyEvent, ...]:
    """In every status: staff read the history of a deleted instance, too."""
    if state.consent_debug_access == command.granted:
        return ()
    return (e.ConsentChanged(at_ms=command.at_ms, granted=command.granted),)


def _change_config(
    state: Instance, command: c.ChangeConfig | c.PatchPlatformConfig | c.ChangeModelPolicy
) -> tuple[e.AnyEvent, ...]:
    changes = set_fields(command)
    sources = (state.config.model_policy,) if isinstance(command, c.ChangeModelPolicy) else (state.config, state)
    for name, value in list(changes.items()):
        source = next(source for source in sources if hasattr(source, name))
        before = getattr(source, name)
        # A text that cannot be encoded differs from whatever is stored: the append refuses it.
        if before == value and _canonical(before) == _canonical(value):
            del changes[name]
    if not changes:
        return ()
    if isinstance(command, c.ChangeConfig):
        return (e.ConfigChanged(at_ms=command.at_ms, **changes),)
    if isinstance(command, c.PatchPlatformConfig):
        return (e.PlatformConfigPatched(at_ms=command.at_ms, **changes),)
    return (e.ModelPolicyChanged(at_ms=command.at_ms, **changes),)


def _record_updates(state: Instance, command: c.RecordUpdatesApplied | c.RecordUpdatesFailed) -> tuple[e.AnyEvent, ...]:
    """The outcome is also recorded if the instance's deletion has begun meanwhile: chats may have been cut."""
    if state.status == DELETED:
        raise TransitionRefused(state.id, trigger="be_changed", status=state.status)
    if isinstance(command, c.RecordUpdatesApplied):
        return (e.UpdatesApplied(**asdict(command)),)
    return (e.UpdatesFailed(**asdict(command)),)


def _record_usage(state: Instance, command: c.RecordUsage) -> tuple[e.AnyEvent, ...]:
    if state.status == DELETED:
        raise AttemptSuperseded(state.id)
    known = state.usage_seqs.get(str(command.ledger_id), 0)
    if command.seq <= known:
        return ()
    if command.seq != known + 1:
        raise SequenceGap(state.id, expected_seq=known + 1)
    return (
        e.UsageRecorded(at_ms=command.at_ms, ledger_id=command.ledger_id, seq=command.seq, entries=command.entries),
    )
