"""The verification of one lane: checks it window by window, and finally compares what must agree with its end.

The fast path checks windows of some hundred events and only decides whether each is valid (`events.window`). Suspect ranges are read
again by `events.diagnosis`, event by event, which finds what is wrong and where. Each link is computed from the stored link before it,
so an edit is found at its place and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import Connection

from events import pages
from events.diagnosis import diagnose
from events.digest import GENESIS
from events.ids import SEQ_MAX, lane_of_bytes
from events.seal import Head
from events.sql import Statements
from events.verification_findings import FINDINGS_MAX, Finding, Note
from events.window import Window, is_valid_window

_SQL = Statements("events", "verify.sql")
_STREAMS = _SQL["streams"]
_LINK_AT = _SQL["link_at"]
_VERSIONS_AT = _SQL["versions_at"]

#: Events per window, fewer if they are large: enough to amortize the cost of a row, few enough for the CPU's caches.
WINDOW_EVENTS = 512

#: Larger than any event.
_BYTES_MAX = 2**31 - 1

#: Where a lane begins.
LANE_START = Head(0, GENESIS)


class SealPoint(NamedTuple):
    """What the seal of number `seal` says of a lane: the event at `seq` was its last one, with this link."""

    seq: int
    link: bytes
    seal: int


class LaneReport(msgspec.Struct, frozen=True, kw_only=True):
    lane: int
    events: int
    commands: int
    findings: list[Finding]
    #: The version of each stream that has events after the start, by the bytes of its id.
    versions: dict[bytes, int]
    #: How many of these streams had events before `finish_lanes` began. They come first in `versions`.
    streams_before_finish: int
    #: What could not be compared.
    notes: set[Note] = msgspec.field(default_factory=set[Note])


class LaneVerification:
    """One lane's verification from `start` on, which is trusted.

    `upto`: the lane's end when the verification began; without it, a reader slower than the writers would never finish.
    `seal_points`: what the seals say of this lane, in order.
    """

    def __init__(
        self, number: int, *, start: Head = LANE_START, upto: int = SEQ_MAX, seal_points: Sequence[SealPoint] = ()
    ) -> None:
        self.number = number
        self.upto = upto
        self.events = self.commands = 0
        #: How many events to ask for in the next window.
        self.window_events = WINDOW_EVENTS
        #: The first number of the last command that was read.
        self.read_upto = start.seq
        self._findings: list[Finding] = []
        #: The version that each stream has reached, by the bytes of its id.
        self._versions: dict[bytes, int] = {}
        self._start = start
        self._head = start
        self._seal_points = [point for point in seal_points if point.seq > start.seq]
        #: The number of the last seal point that was compared, and of the last one below it; everything up to the latter is valid.
        self._point_seq = self._sealed_seq = start.seq
        #: Ranges of numbers (exclusive, inclusive) in which something is wrong.
        self._suspect_ranges: list[tuple[int, int]] = []

    def load_start_versions(self, connection: Connection) -> None:
        """Read which versions the streams with newer events had at the start."""
        if self._start.seq > 0:
            parameters = {"lane": self.number, "after": self._start.seq}
            for stream, version in connection.execute(_VERSIONS_AT, parameters, binary=True):
                self._versions.setdefault(stream, version)

    @property
    def payload_bytes_max(self) -> int:
        """The largest payload that an event of the next window may have, so that the window is at most a page (`events/pages.py`)."""
        return pages.PAGE_BYTES // self.window_events if self.window_events > 1 else _BYTES_MAX

    def accept_size(self, bytes_max: int) -> bool:
        """Whether the window came with its payloads: `bytes_max` is the largest one's size. Sizes the next window for such events."""
        fits = bytes_max <= self.payload_bytes_max
        self.window_events = min(WINDOW_EVENTS, max(1, pages.PAGE_BYTES // max(1, bytes_max)))
        return fits

    def check_window(self, window: Window) -> bool:
        """Check the next window, and continue after it in any case. Returns whether it is valid (`events.window`)."""
        is_valid = is_valid_window(window, after=self._head)
        self._check_seal_points(window)
        if is_valid:
            self._check_versions(window)
        else:
            # A command that claims numbers of the command before it is recognized only if that one is examined with it.
            is_behind = window.first_seqs[0] > self._head.seq
            after = self._head.seq if is_behind else self.read_upto - 1
            self._add_suspect_range(max([self._head.seq, *window.seqs, *window.first_seqs]), after=after)
            versions = zip(window.seqs, window.stream_versions(), strict=False)
            self._versions.update(each for seq, each in versions if seq > self._head.seq)
        seq = window.seqs[-1] if window.seqs else self._head.seq
        self._head = Head(max(seq, self._head.seq), window.links[-1])
        self.read_upto = window.first_seqs[-1]
        self.commands += len(window.first_seqs)
        self.events += len(window.seqs)
        return is_valid

    @property
    def versions_known(self) -> int:
        """The number of streams whose version is known."""
        return len(self._versions)

    def finish(
        self,
        connection: Connection,
        *,
        bounds: tuple[int | None, int | None],
        lane_rows: int,
        streams_before_finish: int,
    ) -> LaneReport:
        """The report of a lane that was read to its end.

        `bounds`: its lowest and highest number. `lane_rows`: the number of its rows in the table `lane`.
        `streams_before_finish`: see `LaneReport`.
        """
        lowest, highest = bounds
        if lowest is not None and lowest < 1:
            what = "The lane has numbers below 1, where events and commands begin"
            self._add_finding("event_extra", what, seq=lowest)
        if highest is not None and highest > self._head.seq:
            self._add_suspect_range(highest, after=self._head.seq)
            self._head = Head(highest, self._head.link)
        self._diagnose_suspect_ranges(connection)
        # May move the head back, so it comes before what names the lane's end.
        if self._start.seq > 0:
            self._check_start(connection, highest or 0)
        self._check_lane_rows(lane_rows)
        self._check_tail(counted=self._check_streams(connection))
        return LaneReport(
            lane=self.number,
            events=self.events,
            commands=self.commands,
            findings=self._findings[:FINDINGS_MAX],
            versions=self._versions,
            streams_before_finish=streams_before_finish,
        )

    def _diagnose_suspect_ranges(self, connection: Connection) -> None:
        for after, upto in self._suspect_ranges:
            found = diagnose(connection, self.number, after=after, upto=upto, start=self._start)
            self._findings += found
            if not found:
                what = "A check failed, but a closer look found nothing wrong"
                self._add_finding("unexplained", what, seq=after + 1, last_seq=upto)

    def _check_start(self, connection: Connection, highest: int) -> None:
        """Compare the lane at the start with the seal behind which the verification began."""
        start = self._start
        if highest < start.seq:
            what = f"The last seal covers events up to {start.seq}, but the lane ends before"
            self._add_finding("tail_missing", what, seq=highest + 1, last_seq=start.seq)
            self._head = Head(highest, start.link)
            return
        row = connection.execute(_LINK_AT, (self.number, start.seq), binary=True).fetchone()
        if row != (start.link,):
            what = "The last seal, after which this verification begins, does not match the events before it: verify the whole lane"
            self._add_finding("rewritten", what, seq=1, last_seq=start.seq)

    def _check_lane_rows(self, count: int) -> None:
        if count == 0:
            what = "The lane has no row in the table lane: nothing can be appended to it"
            self._add_finding("lane_missing", what, seq=self._head.seq)
        elif count > 1:
            self._add_finding("lane_repeated", f"The table lane has {count} rows of this lane", seq=self._head.seq)

    def _check_tail(self, *, counted: int) -> None:
        """Compare the lane's end with the seals that are left and, without any, with the events that the table `stream` counts."""
        if self._seal_points:
            last = self._seal_points[-1]
            what = f"Seal {last.seal} covers events up to {last.seq}, but the lane ends before"
            self._add_finding("tail_missing", what, seq=self._head.seq + 1, last_seq=last.seq)
        elif counted > self._head.seq >= self._start.seq:
            what = f"The versions in the table stream add up to {counted}, but the lane ends before"
            self._add_finding("tail_missing", what, seq=self._head.seq + 1, last_seq=counted)

    def _add_suspect_range(self, upto: int, *, after: int) -> None:
        if self._suspect_ranges and self._suspect_ranges[-1][1] >= after:
            after = self._suspect_ranges.pop()[0]
        self._suspect_ranges.append((after, upto))

    def _check_seal_points(self, window: Window) -> None:
        if not self._seal_points or self._seal_points[0].seq >= window.first_seqs[-1] + window.event_counts[-1]:
            return
        ends = map(int.__add__, window.first_seqs, window.event_counts)
        links = {end - 1: link for end, link in zip(ends, window.links, strict=True)}
        while self._seal_points and self._seal_points[0].seq <= max(links):
            point = self._seal_points.pop(0)
            if point.seq > self._point_seq:
                # Several seals may name the same number, with different links.
                self._sealed_seq, self._point_seq = self._point_seq, point.seq
            if links.get(point.seq) != point.link:
                what = f"Seal {point.seal} does not match these events"
                self._add_finding("rewritten", what, seq=self._sealed_seq + 1, last_seq=point.seq)
                # All later links of the lane build on this one.
                self._seal_points = []

    def _check_versions(self, window: Window) -> None:
        versions = self._versions
        known = versions.get
        for seq, (stream, version) in zip(window.seqs, window.stream_versions(), strict=True):
            before = known(stream, 0)
            if before + 1 != version:
                what = f"Version {version} of the stream follows {before}"
                self._add_finding("version_gap", what, seq=seq, stream_id=UUID(bytes=stream))
            elif version == 1 and lane_of_bytes(stream) != self.number:
                self._add_finding(
                    "wrong_lane", "The stream belongs to another lane", seq=seq, stream_id=UUID(bytes=stream)
                )
            versions[stream] = version

    def _check_streams(self, connection: Connection) -> int:
        """Compare the versions of the table `stream` with the events. Returns how many events the lane has according to the table."""
        rows = connection.execute(_STREAMS, (self.number,), binary=True).fetchall()
        stored: dict[bytes, int | None] = dict(rows)
        if len(stored) < len(rows):
            stream, count = Counter(stream for stream, _ in rows).most_common(1)[0]
            what = f"The table stream has {count} rows for this stream"
            self._add_finding("stream_wrong", what, stream_id=UUID(bytes=stream))
        counted = sum(version or 0 for version in stored.values())
        if self._start.seq > 0:
            stored = {stream: version for stream, version in stored.items() if stream in self._versions}
        if stored == self._versions:
            return counted
        for stream in sorted(stored.keys() | self._versions.keys()):
            says, has = stored.get(stream), self._versions.get(stream)
            if says != has:
                what = f"The table stream has version {says}, but the events end with version {has}"
                self._add_finding("stream_wrong", what, stream_id=UUID(bytes=stream))
        return counted

    def _add_finding(self, kind: str, what: str, **place: Any) -> None:
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(kind=kind, what=what, lane=self.number, **place))
