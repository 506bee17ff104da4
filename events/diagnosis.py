"""Finds out, event by event, what is wrong with a range of a lane, and where.

Digests are recomputed from the stored columns by the functions of `events.digest` that made them. A digest of a higher level is
recomputed from the stored digests below it, so an edited payload is one finding at its event and not one for each digest above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from events.digest import chain_link
from events.row_digests import command_row_digest, has_valid_digest
from events.seal import Head
from events.sql import Statements
from events.verification_findings import FINDINGS_MAX, Finding

_SQL = Statements("events", "verify.sql")
_COMMANDS_BETWEEN = _SQL["commands_between"]
_EVENTS_BETWEEN = _SQL["events_between"]
_LINK_AT = _SQL["link_at"]

#: Events fetched at a time: each may be large.
EVENTS_PER_FETCH = 10

#: From 1970 to 2000, where PostgreSQL's time begins, in microseconds.
POSTGRES_EPOCH_US = 946_684_800_000_000


class _Command(NamedTuple):
    command_id: UUID
    stream_id: UUID
    tenant_id: str
    name: str
    actor: str
    correlation_id: UUID
    causation_id: UUID | None
    request_hash: bytes | None
    result: str | None
    first_seq: int
    event_count: int
    digest: bytes
    link: bytes
    #: Microseconds since 2000, eight bytes, as PostgreSQL sends them.
    recorded_at: bytes


class _Event(NamedTuple):
    seq: int
    stream_id: UUID
    version: int
    tenant_id: str
    type: str
    schema_version: int
    payload: str
    digest: bytes
    command_id: UUID
    recorded_at: bytes


class _EventSummary(NamedTuple):
    """An event without its payload. `has_nulls`: whether a required column is null. `has_valid_digest`: whether its digest is right."""

    seq: int
    stream_id: UUID
    version: int
    tenant_id: str
    digest: bytes
    command_id: UUID
    recorded_at: bytes
    has_nulls: bool
    has_valid_digest: bool


#: Columns that are never null while the tables' constraints are in place.
_REQUIRED_COMMAND_FIELDS = tuple(
    name for name in _Command._fields if name not in {"causation_id", "request_hash", "result"}
)


def diagnose(connection: Connection, lane: int, *, after: int, upto: int, start: Head) -> list[Finding]:
    """The findings in the lane's events above `after` and up to `upto`, about `FINDINGS_MAX` at most. Call it in a transaction.

    `start`: where the verification began, which is trusted.
    """
    bounds = {"lane": lane, "after": after, "upto": upto}
    row = connection.execute(_LINK_AT, (lane, after), binary=True).fetchone() if after > start.seq else None
    cursor = _LaneCursor(lane, after + 1, start.link if row is None else row[0])
    found: list[Finding] = []
    # Memory stays bounded even if the whole lane was edited: only the events near the current command are kept, without payloads.
    with (
        connection.cursor("commands", binary=True, row_factory=class_row(_Command)) as commands,
        connection.cursor("events", binary=True, row_factory=class_row(_Event)) as events,
    ):
        events.itersize = EVENTS_PER_FETCH
        buffer = _EventBuffer(events.execute(_EVENTS_BETWEEN, bounds))
        for command in commands.execute(_COMMANDS_BETWEEN, bounds):
            buffer.load(min(command.first_seq, cursor.seq), max(command.first_seq, cursor.seq) + FINDINGS_MAX)
            found += cursor.check_duplicates(buffer.duplicates)
            found += cursor.check_gap(command.first_seq, buffer.events)
            found += cursor.check_command(command, buffer.events)
            if len(found) >= FINDINGS_MAX:
                return found
        buffer.load(cursor.seq, cursor.seq + FINDINGS_MAX)
    found += cursor.check_duplicates(buffer.duplicates)
    found += cursor.check_gap(upto + 1, buffer.events)
    return found


class _EventBuffer:
    """The events near the command that is being examined, by number."""

    def __init__(self, rows: Iterable[_Event]) -> None:
        self._rows = map(_summarize, rows)
        self._next = next(self._rows, None)
        self.events: dict[int, _EventSummary] = {}
        #: Events of the last `load` whose number another event has, too.
        self.duplicates: list[_EventSummary] = []

    def load(self, first: int, last: int) -> None:
        """Load the events from `first` to `last`, and drop those before. Neither bound may ever decrease."""
        self.events = {seq: event for seq, event in self.events.items() if seq >= first}
        self.duplicates = []
        while self._next is not None and self._next.seq <= last:
            if self._next.seq in self.events:
                self._add_duplicate(self._next)
            elif self._next.seq >= first:
                self.events[self._next.seq] = self._next
            self._next = next(self._rows, None)

    def _add_duplicate(self, event: _EventSummary) -> None:
        # Without the primary key anything may have been inserted. The event whose digest is right is taken for the original.
        if event.has_valid_digest and not self.events[event.seq].has_valid_digest:
            event, self.events[event.seq] = self.events[event.seq], event
        if len(self.duplicates) < FINDINGS_MAX:
            self.duplicates.append(event)


def _summarize(event: _Event) -> _EventSummary:
    lacks = None in event
    return _EventSummary(
        seq=event.seq,
        stream_id=event.stream_id,
        version=event.version,
        tenant_id=event.tenant_id,
        digest=event.digest,
        command_id=event.command_id,
        recorded_at=event.recorded_at,
        has_nulls=lacks,
        has_valid_digest=not lacks and has_valid_digest(event),
    )


class _LaneCursor:
    """The current position in the lane: the number `seq`, and the stored link before it."""

    def __init__(self, lane: int, seq: int, link: bytes) -> None:
        self._lane = lane
        self.seq = seq
        self._link = link

    def check_gap(self, upto: int, events: dict[int, _EventSummary]) -> Iterator[Finding]:
        """Findings between the previous command and the one that begins at `upto`, where nothing may be."""
        missing = [seq for seq in range(self.seq, min(upto, self.seq + FINDINGS_MAX)) if seq not in events]
        if missing:
            yield self._finding(
                "event_missing", "Numbers are missing: events were removed", missing[0], last_seq=missing[-1]
            )
        for seq in range(self.seq, min(upto, self.seq + FINDINGS_MAX)):
            if seq in events:
                what = "The event has no command: it was inserted, or its command was removed"
                yield self._finding("event_extra", what, seq, stream_id=events[seq].stream_id)
        if upto < self.seq:
            yield self._finding("command_overlaps", "Two commands claim the same events", upto)

    def check_duplicates(self, events: Iterable[_EventSummary]) -> Iterator[Finding]:
        for event in events:
            what = "The event exists more than once, or another event has the same number"
            yield self._finding("event_extra", what, event.seq, stream_id=event.stream_id)

    def check_command(self, command: _Command, events: dict[int, _EventSummary]) -> Iterator[Finding]:
        """Findings in a command, its events and its link."""
        if any(getattr(command, name) is None for name in _REQUIRED_COMMAND_FIELDS) or command.event_count < 1:
            what = f"Command {command.command_id} lacks required fields"
            yield self._finding("command_edited", what, command.first_seq)
            self._link, self.seq = command.link or b"", max(self.seq, command.first_seq + (command.event_count or 0))
            return
        first, last = command.first_seq, command.first_seq + command.event_count - 1
        found = [events.get(seq) for seq in range(first, min(last, first + FINDINGS_MAX) + 1)]
        for seq, event in enumerate(found, start=first):
            if event is None:
                what = f"The event is missing: command {command.command_id} has {command.event_count}, beginning with {first}"
                yield self._finding("event_missing", what, seq)
            else:
                yield from self._check_event(event, command)
        present = [event for event in found if event is not None and not event.has_nulls]
        if len(present) == command.event_count and not _has_valid_digest(command, present):
            yield from self._check_edited(command, present)
        if _compute_link(command, self._link) != command.link:
            yield self._finding("chain_broken", "The link does not follow from the previous one", first, last_seq=last)
        self._link, self.seq = command.link, max(self.seq, last + 1)

    def _check_edited(self, command: _Command, events: list[_EventSummary]) -> Iterator[Finding]:
        """Findings in a command whose digest does not follow from its row and its events."""
        in_order = sorted(events, key=attrgetter("version"))
        if _has_valid_digest(command, in_order):
            for event, other in zip(events, in_order, strict=True):
                if event is not other:
                    what = "The event was swapped with another one of its command"
                    yield self._finding("event_edited", what, event.seq, stream_id=event.stream_id)
            return
        what = f"Command {command.command_id} was edited, or one of its events was, together with its digest"
        yield self._finding("command_edited", what, events[0].seq, last_seq=events[-1].seq)

    def _check_event(self, event: _EventSummary, command: _Command) -> Iterator[Finding]:
        if event.has_nulls:
            what = "The event lacks required fields"
            yield self._finding("event_edited", what, event.seq, stream_id=event.stream_id)
            return
        for name in ("command_id", "stream_id", "tenant_id", "recorded_at"):
            if getattr(event, name) != getattr(command, name):
                what = f"Its {name} differs from that of the command at this number"
                yield self._finding("event_edited", what, event.seq, stream_id=event.stream_id)
        if not event.has_valid_digest:
            what = "Its stream, version, type or payload does not match its digest"
            yield self._finding("event_edited", what, event.seq, stream_id=event.stream_id)

    def _finding(self, kind: str, what: str, seq: int, **more: Any) -> Finding:
        return Finding(kind=kind, what=what, lane=self._lane, seq=seq, **more)


def _has_valid_digest(command: _Command, events: Iterable[_EventSummary]) -> bool:
    """Whether the command's digest follows from its row and these events."""
    return command_row_digest(command, [event.digest for event in events]) == command.digest


def _compute_link(command: _Command, previous: bytes) -> bytes | None:
    recorded_us = int.from_bytes(command.recorded_at, signed=True) + POSTGRES_EPOCH_US
    if recorded_us < 0 or command.first_seq < 0:
        return None
    return chain_link(previous=previous, command=command.digest, first_seq=command.first_seq, recorded_us=recorded_us)
