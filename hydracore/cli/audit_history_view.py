"""How histories are printed on a terminal. As JSON they are what the API returns.

Texts from others (names, reasons, an agent's messages) are printed without control characters (`printing.say`), and
only the beginning of long ones, so that they cannot manipulate the output of an audit. Only a state, which is asked for
by instance and version, is printed in full.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec

from hydracore.audit.changes import Change, leaves
from hydracore.audit.history import Entry
from hydracore.audit.history_rendering import (
    HistoryDifference,
    HistoryEvent,
    HistoryFieldEvent,
    HistoryState,
    hide_sealed,
    render_event,
)
from hydracore.audit.timestamps import ms_text
from hydracore.cli.printing import SHOWN_MAX, brief, escaped, print_json, print_json_line, quoted, say
from hydracore.wording import plural


async def print_events(
    entries: AsyncGenerator[Entry], *, limit: int | None, heads_token: str | None, as_json: bool
) -> None:
    """Print at most `limit` events, each as soon as it is read.

    `heads_token`: the heads up to which a tenant's events are read; None for an instance's events. If there are
    more events, says on standard error how to continue.
    """
    count, last = 0, None
    async for entry in entries:
        if count == limit:
            say(
                f"continue with: --after {last}{'' if heads_token is None else f'@{heads_token}'}", err=True, whole=True
            )
            return
        event = await render_event(entry, hide_sealed)
        if as_json:
            print_json_line(event)
        else:
            say(*_event_lines(event, of_tenant=heads_token is not None), bold=True)
        count, last = count + 1, f"{event.lane}:{event.seq}"
    if not count:
        say("no matching events", err=True)


def print_state(found: HistoryState, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    say(f"{found.instance_id} at version {found.version}, recorded {found.recorded_at}", bold=True)
    fields = list(leaves("", found.state))
    width = _width(field for field, _ in fields)
    for field, value in fields:
        say(f"  {field:<{width}}  {_value_text(field, value, whole=True)}", whole=True)


def print_difference(found: HistoryDifference, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    say(str(found.instance_id), bold=True)
    if found.from_recorded_at is None:
        say("  from  before its first event")
    else:
        say(f"  from  version {found.from_version}, recorded {found.from_recorded_at}")
    say(f"  to    version {found.to_version}, recorded {found.to_recorded_at}")
    for change in found.changes:
        say("", _change_line(change, width=0))
        if earlier := change.event_count - len(change.events):
            say(f"    ... {plural(earlier, 'earlier event')}")
        for event in change.events:
            say(_field_event_line(change.field, event, is_one_of_many=change.event_count > 1))
    if not found.changes:
        say("no differences")


def _field_event_line(field: str, event: HistoryFieldEvent, *, is_one_of_many: bool) -> str:
    values = f": {_value_text(field, event.before)} -> {_value_text(field, event.after)}" if is_one_of_many else ""
    return f"    v{event.version}  {event.recorded_at}  {event.type} by {_short_name(event.actor)} ({_short_name(event.command)}){values}"


def _event_lines(event: HistoryEvent, *, of_tenant: bool) -> list[str]:
    place = f"{event.lane}:{event.seq}"
    whose = f"{event.instance_id}  " if of_tenant else ""
    cause = "" if event.causation_id is None else f", causation {event.causation_id}"
    fields = "".join(
        f" {_short_name(name)}={_value_text(name, value)}" for name, value in leaves("", event.fields) if name
    )
    width = _width(change.field for change in event.changes)
    lines = [
        f"{place}  {whose}v{event.version}  {event.recorded_at}  {event.type}",
        f"  {event.what}{':' if fields else ''}{fields}",
        f"  by {_short_name(event.actor)}: {_short_name(event.command)} {event.command_id}, correlation {event.correlation_id}{cause}",
    ]
    return [*lines, *(f"    {_change_line(change, width=width)}" for change in event.changes), ""]


def _change_line(change: Change, *, width: int) -> str:
    before, after = (_value_text(change.field, value) for value in (change.before, change.after))
    return f"{_short_name(change.field):<{width}}  {before} -> {after}"


def _width(names: Iterable[str]) -> int:
    """The width of the column of `names`. A long name may exceed it, so that it does not push other values aside."""
    return min(max(map(len, names), default=0), SHOWN_MAX)


def _short_name(text: str) -> str:
    return brief(escaped(text))


def _value_text(field: str, value: Any, *, whole: bool = False) -> str:
    """`value` in one line. Values of fields in milliseconds are shown as times."""
    if field.endswith("_ms") and isinstance(value, int) and value:
        return str(ms_text(value))
    text = quoted(value) if isinstance(value, str) else escaped(msgspec.json.encode(value).decode())
    return text if whole else brief(text)
