"""Renders histories for terminals, as JSON and over HTTP. Ciphertext is never shown.

The caller decides what is shown in place of a sealed text (`RenderSealed`). Hashes of credentials are masked:
enough is left to tell two apart.
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
from hydracore.audit.event_phrases import phrase
from hydracore.audit.historical_state import HistoricalState
from hydracore.audit.history import Entry
from hydracore.audit.timestamps import ms_text, time_text
from hydracore.documents import mask, replace_secrets

#: What is shown for a sealed text that is not opened, and for one whose key was destroyed.
SEALED: Final = "(sealed)"
ERASED: Final = "(erased)"

#: Fields of events and of the state that hold one sealed text, and fields that hold lists with some sealed texts.
SEALED_FIELDS: Final = frozenset({*SEALED_OF_INSTANCE, *SEALED_OF_CONFIG})
PARTLY_SEALED_FIELDS: Final = frozenset({"integrations", "skills"})

#: How the names of fields end that hold a hash or a nonce of a credential. Nobody needs those values in full.
_CREDENTIAL_SUFFIXES: Final = ("_hash", "_nonce")

#: Returns what to show for a sealed text. Takes the name of its field, and the text.
RenderSealed = Callable[[str, str], Awaitable[Any]]

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


class HistoryFieldEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that changed a field, with the values of the field before and after it."""

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
    events: list[HistoryFieldEvent]


class HistoryDifference(msgspec.Struct, frozen=True, kw_only=True):
    """`from_version` 0: from before the instance existed."""

    instance_id: UUID
    from_version: int
    to_version: int
    from_recorded_at: TimeText | None
    to_recorded_at: TimeText
    changes: list[HistoryChange]


async def hide_sealed(_field: str, _text: str) -> str:
    """A `RenderSealed` that opens nothing."""
    return SEALED


async def render_event(entry: Entry, render_sealed: RenderSealed) -> HistoryEvent:
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
        fields=await render_field("", fields, render_sealed),
        actor=record.actor,
        command=record.command,
        command_id=record.command_id,
        correlation_id=record.correlation_id,
        causation_id=record.causation_id,
        changes=[await _render_change(change, render_sealed) for change in changes_between(entry.before, entry.after)],
    )


async def render_state(historical: HistoricalState, render_sealed: RenderSealed) -> HistoryState:
    return HistoryState(
        instance_id=historical.state.id,
        version=historical.state.version,
        recorded_at=time_text(historical.recorded_at),
        state=await render_field("", msgspec.to_builtins(historical.state), render_sealed),
    )


async def render_difference(found: Difference, render_sealed: RenderSealed) -> HistoryDifference:
    changes = [
        HistoryChange(
            **msgspec.structs.asdict(await _render_change(change, render_sealed)),
            event_count=field_events.count,
            events=[
                HistoryFieldEvent(
                    lane=event.lane,
                    seq=event.seq,
                    version=event.version,
                    recorded_at=time_text(event.recorded_at),
                    type=event.type,
                    actor=event.actor,
                    command=event.command,
                    before=await _render_path_value(event.change.field, event.change.before, render_sealed),
                    after=await _render_path_value(event.change.field, event.change.after, render_sealed),
                )
                for event in field_events.last
            ],
        )
        for change, field_events in found.changes
    ]
    return HistoryDifference(
        instance_id=found.end.state.id,
        from_version=0 if found.start is None else found.start.state.version,
        to_version=found.end.state.version,
        from_recorded_at=None if found.start is None else time_text(found.start.recorded_at),
        to_recorded_at=time_text(found.end.recorded_at),
        changes=changes,
    )


async def _render_change(change: Change, render_sealed: RenderSealed) -> Change:
    return Change(
        field=change.field,
        before=await _render_path_value(change.field, change.before, render_sealed),
        after=await _render_path_value(change.field, change.after, render_sealed),
    )


async def _render_path_value(field: str, value: Any, render_sealed: RenderSealed) -> Any:
    return await render_field(field.rpartition(".")[2], value, render_sealed)


async def render_field(name: str, value: Any, render_sealed: RenderSealed) -> Any:
    """`value` of the field `name` (empty: a whole document), with sealed texts replaced by `render_sealed`."""
    if name in PARTLY_SEALED_FIELDS:
        return await _render_partly_sealed(name, value, render_sealed)
    if isinstance(value, dict):
        return {
            key: await render_field(key, item, render_sealed) for key, item in cast("dict[str, Any]", value).items()
        }
    if isinstance(value, list | tuple):
        return [await render_field(name, item, render_sealed) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    if name in SEALED_FIELDS:
        return await render_sealed(name, value)
    return mask(value) if name.endswith(_CREDENTIAL_SUFFIXES) else value


async def _render_partly_sealed(name: str, value: Any, render_sealed: RenderSealed) -> Any:
    """Render a list in which the owner chooses the names of fields: sealed texts are recognized by their form.

    Secrets that were stored in the clear, before the field was known to hold a secret, are masked.
    """

    async def hide(text: str) -> str:
        return text if looks_sealed(text) else mask(text)

    async def open_sealed(text: str) -> Any:
        return await render_sealed(name, text) if looks_sealed(text) else text

    return await replace_secrets(await replace_secrets(value, hide), open_sealed, secret=True)
