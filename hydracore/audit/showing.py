"""Histories as they are shown, on a terminal, as JSON and over HTTP alike: what is sealed is never shown raw.

What stands for a sealed text is decided by whoever shows it (`Show`). Hashes of credentials are cut down to what tells two
apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, cast
from uuid import UUID

import msgspec
from msgspec import Meta

from events.evolve_use import looks_sealed
from events.state import SEALED_OF_CONFIG, SEALED_OF_INSTANCE
from hydracore.audit.changes import Change, changes_between
from hydracore.audit.difference import Difference
from hydracore.audit.history import Entry
from hydracore.audit.moments import ms_text, time_text
from hydracore.audit.past import Past
from hydracore.audit.words import phrase
from hydracore.documents import mask, with_secrets

#: What is shown for a sealed text to whom it is not opened, and what of one whose key was destroyed.
SEALED: Final = "(sealed)"
ERASED: Final = "(erased)"

#: Fields of events and of the state that hold one sealed text, and those that hold lists with sealed texts among others.
SEALED_FIELDS: Final = frozenset({*SEALED_OF_INSTANCE, *SEALED_OF_CONFIG})
SEALED_WITHIN: Final = frozenset({"integrations", "skills"})

#: How the names of what stands for a credential end: nobody can do anything with these, and nobody needs all of them.
_OF_CREDENTIALS: Final = ("_hash", "_nonce")

#: What to show for a sealed text, by the name of its field.
Show = Callable[[str, str], Awaitable[Any]]

TimeText = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event: where it stands, what it says, who did it, and what it changed of the instance.

    `recorded_at` is by the log's clock, `happened_at` by the clock of whoever saw it: in milliseconds since 1970 where no calendar
    has that time. `what` is for people.
    """

    lane: int
    seq: int
    instance_id: UUID
    version: int
    recorded_at: TimeText
    happened_at: TimeText | int
    type: str
    what: str
    fields: dict[str, Any]
    actor: str
    command: str
    command_id: UUID
    correlation_id: UUID
    causation_id: UUID | None
    changes: list[Change]


class HistoryState(msgspec.Struct, frozen=True, kw_only=True):
    """An instance after its event `version`, which the log learned of at `recorded_at`."""

    instance_id: UUID
    version: int
    recorded_at: TimeText
    state: dict[str, Any]


class HistoryStep(msgspec.Struct, frozen=True, kw_only=True):
    """One event's part in a change."""

    lane: int
    seq: int
    version: int
    recorded_at: TimeText
    type: str
    actor: str
    command: str
    before: Any
    after: Any


class HistoryChange(Change, frozen=True, kw_only=True):
    """A field that is different at the end, and the events that made it so: how many there were, and the last of them."""

    event_count: int
    events: list[HistoryStep]


class HistoryDifference(msgspec.Struct, frozen=True, kw_only=True):
    """`from_version` 0: from before the instance was."""

    instance_id: UUID
    from_version: int
    to_version: int
    from_recorded_at: TimeText | None
    to_recorded_at: TimeText
    changes: list[HistoryChange]


async def sealed(_field: str, _text: str) -> str:
    """Opens nothing to anybody."""
    return SEALED


async def shown_event(entry: Entry, show: Show) -> HistoryEvent:
    record = entry.record
    fields: dict[str, Any] = msgspec.to_builtins(entry.event)
    del fields["type"], fields["at_ms"]
    return HistoryEvent(
        lane=record.lane,
        seq=record.seq,
        instance_id=record.stream_id,
        version=record.version,
        recorded_at=time_text(record.recorded_at),
        happened_at=ms_text(entry.event.at_ms),
        type=record.type,
        what=phrase(entry.event),
        fields=await shown("", fields, show),
        actor=record.actor,
        command=record.command,
        command_id=record.command_id,
        correlation_id=record.correlation_id,
        causation_id=record.causation_id,
        changes=[await _shown_change(change, show) for change in changes_between(entry.before, entry.after)],
    )


async def shown_state(past: Past, show: Show) -> HistoryState:
    return HistoryState(
        instance_id=past.state.id,
        version=past.state.version,
        recorded_at=time_text(past.recorded_at),
        state=await shown("", msgspec.to_builtins(past.state), show),
    )


async def shown_difference(found: Difference, show: Show) -> HistoryDifference:
    changes = [
        HistoryChange(
            **msgspec.structs.asdict(await _shown_change(change, show)),
            event_count=steps.count,
            events=[
                HistoryStep(
                    lane=step.lane,
                    seq=step.seq,
                    version=step.version,
                    recorded_at=time_text(step.recorded_at),
                    type=step.type,
                    actor=step.actor,
                    command=step.command,
                    before=await _shown_value(step.change.field, step.change.before, show),
                    after=await _shown_value(step.change.field, step.change.after, show),
                )
                for step in steps.last
            ],
        )
        for change, steps in found.changes
    ]
    return HistoryDifference(
        instance_id=found.end.state.id,
        from_version=0 if found.start is None else found.start.state.version,
        to_version=found.end.state.version,
        from_recorded_at=None if found.start is None else time_text(found.start.recorded_at),
        to_recorded_at=time_text(found.end.recorded_at),
        changes=changes,
    )


async def _shown_change(change: Change, show: Show) -> Change:
    return Change(
        field=change.field,
        before=await _shown_value(change.field, change.before, show),
        after=await _shown_value(change.field, change.after, show),
    )


async def _shown_value(field: str, value: Any, show: Show) -> Any:
    return await shown(field.rpartition(".")[2], value, show)


async def shown(name: str, value: Any, show: Show) -> Any:
    """`value` of the field `name` (empty: of none), with what may be seen in place of what is sealed."""
    if name in SEALED_WITHIN:
        return await _shown_within(name, value, show)
    if isinstance(value, dict):
        return {key: await shown(key, item, show) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [await shown(name, item, show) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    if name in SEALED_FIELDS:
        return await show(name, value)
    return mask(value) if name.endswith(_OF_CREDENTIALS) else value


async def _shown_within(name: str, value: Any, show: Show) -> Any:
    """A list whose names are its owner's: what is sealed there is told by its form. What was stored before it was known for
    a secret is in the clear, and is masked here."""

    async def hide(text: str) -> str:
        return text if looks_sealed(text) else mask(text)

    async def open_sealed(text: str) -> Any:
        return await show(name, text) if looks_sealed(text) else text

    return await with_secrets(await with_secrets(value, hide), open_sealed, secret=True)
