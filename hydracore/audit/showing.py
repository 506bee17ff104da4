"""The form of histories that are shown on a terminal, as JSON and over HTTP: sealed texts are never shown raw.

The caller decides what is shown in place of a sealed text (`Show`). Hashes of credentials are cut to a
length that tells two apart.
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
from hydracore.documents import mask, replace_secrets

#: What is shown for a sealed text that is not opened, and for one whose key was destroyed.
SEALED: Final = "(sealed)"
ERASED: Final = "(erased)"

#: Fields of events and of the state that hold one sealed text, and those that hold lists with sealed texts among others.
SEALED_FIELDS: Final = frozenset({*SEALED_OF_INSTANCE, *SEALED_OF_CONFIG})
SEALED_WITHIN: Final = frozenset({"integrations", "skills"})

#: The endings of the names of fields that stand for a credential. They are of no use to anybody, and not
#: needed in full.
_OF_CREDENTIALS: Final = ("_hash", "_nonce")

#: Returns what to show for a sealed text. Takes the name of its field, and the text.
Show = Callable[[str, str], Awaitable[Any]]

TimeText = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class HistoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event: where it stands, what it says, who did it, and what it changed of the instance.

    `recorded_at` is by the log's clock, `happened_at` by the clock of the process that saw it: in
    milliseconds since 1970 where no calendar has that time. `what` is for people.
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
    """An instance after its event `version`, which was recorded at `recorded_at`."""

    instance_id: UUID
    version: int
    recorded_at: TimeText
    state: dict[str, Any]


class HistoryStep(msgspec.Struct, frozen=True, kw_only=True):
    """An event that changed a field, and how."""

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
    """A field that is different at the end, with the number of events that changed it, and the last of these."""

    event_count: int
    events: list[HistoryStep]


class HistoryDifference(msgspec.Struct, frozen=True, kw_only=True):
    """`from_version` 0: from before the instance existed."""

    instance_id: UUID
    from_version: int
    to_version: int
    from_recorded_at: TimeText | None
    to_recorded_at: TimeText
    changes: list[HistoryChange]


async def sealed(_field: str, _text: str) -> str:
    """A `Show` that opens nothing."""
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
    """`value` of the field `name` (empty: a whole document), with what `show` returns in place of sealed texts."""
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
    """A list whose owner chooses the names of fields: sealed texts are recognized by their form.

    Secrets that were stored in the clear, before they were known as such, are masked.
    """

    async def hide(text: str) -> str:
        return text if looks_sealed(text) else mask(text)

    async def open_sealed(text: str) -> Any:
        return await show(name, text) if looks_sealed(text) else text

    return await replace_secrets(await replace_secrets(value, hide), open_sealed, secret=True)
