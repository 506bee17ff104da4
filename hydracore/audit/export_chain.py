"""Checks one lane of an export: the links of its chain, its events, and what seals say of it.

As in `events.diagnosis`, each value is computed from the stored values that it covers, and after a
mismatch the check goes on from the stored link. So one edit gives one finding, at its place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

from events.digest import chain_link
from events.ids import lane_of
from events.lane_verification import SealPoint
from events.row_digests import command_row_digest, has_valid_digest
from events.times import to_microseconds
from hydracore.audit.export_records import (
    CommandRecord,
    EventRecord,
    LaneEndRecord,
    LaneRecord,
    StepsRecord,
)


class ReportFinding(Protocol):
    """Reports a finding at the current record."""

    def __call__(self, kind: str, what: str, **place: Any) -> None: ...


class LaneChain:
    """The check of one lane, fed with its records in order.

    `points`: what seals say of the lane, in order, above the number at which it begins here. `is_in_scope`:
    whether a command belongs to the exported instance or tenant.
    """

    def __init__(
        self,
        begin: LaneRecord,
        points: Sequence[SealPoint],
        find: ReportFinding,
        is_in_scope: Callable[[CommandRecord], bool],
    ) -> None:
        self.lane = begin.lane
        self.commands = self.steps = self.events = 0
        #: Whether anything was found since the last matching point. If so, seals that do not match are
        #: not reported, too.
        self.is_broken = False
        #: The version that each stream has reached.
        self.versions: dict[UUID, int] = {}
        #: The events that no seal covers: their count, and the first one's number.
        self.unsealed, self.unsealed_from = 0, 0
        self._find = find
        self._is_in_scope = is_in_scope
        self._points = list(points)
        #: The number of the last point that matched, and of the last matching one below it.
        self._matched_seq = self._sealed_seq = begin.after
        self._link = begin.link
        #: The lowest number that may come next. It is the only one, unless steps of other commands came last: they do
        #: not say how many events these commands have.
        self._next_seq = begin.after + 1
        self._is_next_exact = True
        self._command: CommandRecord | None = None
        #: Of the current command: the number of its next event, the digests of its events so far, and whether none of
        #: them is missing.
        self._next_event_seq = 0
        self._digests: list[bytes] = []
        self._has_all_events = True

    def command(self, command: CommandRecord) -> None:
        self._finish_command()
        first, last = command.first_seq, command.first_seq + command.event_count - 1
        self._check_first_seq(first)
        if not self._is_in_scope(command):
            what = f"Command {command.command_id} is outside the scope of the export"
            self._find("foreign_command", what, lane=self.lane, seq=first, last_seq=last)
        if self._next_link(command.digest, first, to_microseconds(command.recorded_at)) != command.link:
            self._report_break("chain_broken", "The link does not follow from the previous one", first, last_seq=last)
        self._link = command.link
        self._next_seq, self._is_next_exact = max(self._next_seq, last + 1), True
        self._command, self._next_event_seq, self._digests, self._has_all_events = command, first, [], True
        self.commands += 1

    def event(self, event: EventRecord) -> None:
        command, stream, due = self._command, event.stream_id, self._next_event_seq
        if command is None or not due <= event.seq < command.first_seq + command.event_count:
            what = "The event does not belong here: it was inserted or replaces another one"
            self._report_break("event_extra", what, event.seq, stream_id=stream)
            return
        if event.seq > due:
            self._report_break("event_missing", "Events are missing", due, last_seq=event.seq - 1)
            self._has_all_events = False
        for name in ("lane", "command_id", "stream_id", "tenant_id", "recorded_at"):
            if getattr(event, name) != getattr(command, name):
                self._report_break(
                    "event_edited", f"Its {name} differs from that of its command", event.seq, stream_id=stream
                )
        if not has_valid_digest(event):
            what = "Its stream, version, type or payload does not match its digest"
            self._report_break("event_edited", what, event.seq, stream_id=stream)
        self._check_version(event)
        self._digests.append(event.digest)
        self._next_event_seq = event.seq + 1
        self.events += 1
        self.unsealed_from = self.unsealed_from or event.seq
        self.unsealed += 1

    def other_commands(self, steps: StepsRecord) -> None:
        """Check commands that were not exported: the file has only what the chain needs of them."""
        self._finish_command()
        try:
            parsed = list(steps)
        except struct.error:
            parsed = []
        if len(parsed) != steps.count:
            self._report_break("steps_damaged", "The record of other commands' steps is damaged", self._next_seq)
        begin = self._next_seq
        for first, recorded_us, digest in parsed:
            self._check_first_seq(first)
            self._link = self._next_link(digest, first, recorded_us) or self._link
            self._next_seq, self._is_next_exact = max(self._next_seq, first + 1), False
        if parsed and self._link != steps.link:
            what = "The links of other commands do not follow from the previous one"
            self._report_break("chain_broken", what, begin, last_seq=self._next_seq - 1)
        self._link = steps.link
        self.steps += len(parsed)

    def finish(self, end: LaneEndRecord | None) -> None:
        """Check the end of the lane. `end` None: the file has no end of it."""
        self._finish_command()
        if end is None:
            self._report_break("file_truncated", "The end of the lane is missing in the file", self._next_seq)
            return
        last = self._next_seq - 1
        if end.seq < last:
            self._report_break("event_extra", f"The lane should end with {end.seq}", end.seq + 1, last_seq=last)
        elif self._is_next_exact and end.seq > last:
            self._report_break("event_missing", f"The lane should end with {end.seq}", self._next_seq, last_seq=end.seq)
        self._check_points(end.seq + 1)
        if end.link != self._link and not self.is_broken:
            self._report_break("chain_broken", "The chain does not lead to the link at its end", end.seq)

    def _check_first_seq(self, first: int) -> None:
        """Check that the next command may begin with the number `first`, and what seals say of the lane before it."""
        if first < self._next_seq:
            self._report_break("command_overlaps", "A command claims numbers of an earlier one", first)
        elif self._is_next_exact and first > self._next_seq:
            self._report_break(
                "event_missing", "Numbers are missing: commands were removed", self._next_seq, last_seq=first - 1
            )
        self._check_points(first)

    def _check_points(self, seq: int) -> None:
        """Compare the points below `seq` with the chain, whose present link is that of number `seq - 1`."""
        while self._points and self._points[0].seq < seq:
            point = self._points.pop(0)
            if (point.seq, point.link) == (seq - 1, self._link):
                self.is_broken = False
                if point.seq > self._matched_seq:
                    self._sealed_seq, self._matched_seq = self._matched_seq, point.seq
                self.unsealed = self.unsealed_from = 0
            elif not self.is_broken:
                what = f"Seal {point.seal} does not match these events"
                # Where another seal of the same number has matched, the finding begins behind the matching point below.
                after = self._matched_seq if self._matched_seq < point.seq else self._sealed_seq
                self._report_break("rewritten", what, after + 1, last_seq=point.seq)
                # All later points depend on these events.
                self._points = []

    def _next_link(self, digest: bytes, first: int, recorded_us: int) -> bytes | None:
        try:
            return chain_link(previous=self._link, command=digest, first_seq=first, recorded_us=recorded_us)
        except OverflowError:
            return None  # Numbers and times that the log never writes.

    def _finish_command(self) -> None:
        command, digests = self._command, self._digests
        self._command = None
        if command is None:
            return
        first, last = command.first_seq, command.first_seq + command.event_count - 1
        if self._next_event_seq <= last:
            self._report_break("event_missing", "Events are missing", self._next_event_seq, last_seq=last)
        elif self._has_all_events and command_row_digest(command, digests) != command.digest:
            what = f"Command {command.command_id} was edited, or one of its events was, together with its digest"
            self._report_break("command_edited", what, first, last_seq=last)

    def _check_version(self, event: EventRecord) -> None:
        before = self.versions.get(event.stream_id, 0)
        if before + 1 != event.version:
            what = f"Version {event.version} of the stream follows {before}"
            self._report_break("version_gap", what, event.seq, stream_id=event.stream_id)
        elif before == 0 and lane_of(event.stream_id) != self.lane:
            self._report_break("wrong_lane", "The stream belongs to another lane", event.seq, stream_id=event.stream_id)
        self.versions[event.stream_id] = event.version

    def _report_break(self, kind: str, what: str, seq: int, **place: Any) -> None:
        self.is_broken = True
        self._find(kind, what, lane=self.lane, seq=seq, **place)
