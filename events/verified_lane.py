"""The state of one lane's verification: checks the lane window by window, and finally what must agree with its end.

The fast path takes windows of some hundred events and only decides whether everything fits (`events.window`). Ranges that do not fit
are read again by `events.examine`, event by event, which finds what is wrong and where. Each link is computed from the stored link
before it, so an edit is found at its place and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import Connection

from events import pages
from events.digest import GENESIS
from events.examine import examine
from events.finding import FINDINGS_MAX, Finding, Note
from events.ids import SEQ_MAX, lane_of_bytes
from events.seal import Head
from events.sql import Statements
from events.window import Window, fits

_SQL = Statements("events", "verify.sql")
_STREAMS = _SQL["streams"]
_LINK_AT = _SQL["link_at"]
_VERSIONS_AT = _SQL["versions_at"]

#: Events per window, fewer if they are large: enough to amortize the cost of a row, few enough for the CPU's caches.
WINDOW = 512

#: Larger than any event.
_BYTES_MAX = 2**31 - 1

#: Where a lane begins.
BEGINNING = Head(0, GENESIS)


class Point(NamedTuple):
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
    #: How many of these streams had events before `finish` began. They come first in `versions`.
    settled: int
    #: What could not be compared.
    notes: set[Note] = msgspec.field(default_factory=set[Note])


class Lane:
    """One lane's verification from `start` on, which is trusted.

    `upto`: the lane's end when the verification began; without it, a reader slower than the writers would never finish.
    `points`: what the seals say of this lane, in order.
    """

    def __init__(
        self, number: int, *, start: Head = BEGINNING, upto: int = SEQ_MAX, points: Sequence[Point] = ()
    ) -> None:
        self.number = number
        self.upto = upto
        self.events = self.commands = 0
        #: How many events to ask for in the next window.
        self.window = WINDOW
        #: The first number of the last command that was read.
        self.read_upto = start.seq
        self._findings: list[Finding] = []
        #: The version that each stream has reached, by the bytes of its id.
        self._versions: dict[bytes, int] = {}
        self._start = start
        self._at = start
        self._points = [point for point in points if point.seq > start.seq]
        #: The number of the last point that was compared, and of the last one below it; everything up to the latter fits.
        self._point_seq = self._sealed_seq = start.seq
        #: Ranges of numbers (exclusive, inclusive) in which something does not fit.
        self._doubts: list[tuple[int, int]] = []

    def learn(self, connection: Connection) -> None:
        """Read which versions the streams with newer events had at the start."""
        if self._start.seq > 0:
            parameters = {"lane": self.number, "after": self._start.seq}
            for stream, version in connection.execute(_VERSIONS_AT, parameters, binary=True):
                self._versions.setdefault(stream, version)

    @property
    def payload_bytes_max(self) -> int:
        """The largest payload that an event of the next window may have, so that the window is at most a page (`events/pages.py`)."""
        return pages.PAGE_BYTES // self.window if self.window > 1 else _BYTES_MAX

    def has_room(self, bytes_max: int) -> bool:
        """Whether the window came with its payloads, given the largest one's size. Sizes the next window for events as large as that."""
        fits_in = bytes_max <= self.payload_bytes_max
        self.window = min(WINDOW, max(1, pages.PAGE_BYTES // max(1, bytes_max)))
        return fits_in

    def take(self, window: Window) -> bool:
        """Check the next window, and move on behind it in any case. Returns whether it fits (`events.window`)."""
        good = fits(window, after=self._at)
        self._check_points(window)
        if good:
            self._check_versions(window)
        else:
            # A command that claims numbers of the command before it is recognized only if that one is examined with it.
            is_behind = window.first_seqs[0] > self._at.seq
            after = self._at.seq if is_behind else self.read_upto - 1
            self._doubt(max([self._at.seq, *window.seqs, *window.first_seqs]), after=after)
            versions = zip(window.seqs, window.stream_versions(), strict=False)
            self._versions.update(each for seq, each in versions if seq > self._at.seq)
        seq = window.seqs[-1] if window.seqs else self._at.seq
        self._at = Head(max(seq, self._at.seq), window.links[-1])
        self.read_upto = window.first_seqs[-1]
        self.commands += len(window.first_seqs)
        self.events += len(window.seqs)
        return good

    @property
    def versions_known(self) -> int:
        """The number of streams whose version is known."""
        return len(self._versions)

    def finish(
        self, connection: Connection, *, bounds: tuple[int | None, int | None], is_there: bool, settled: int
    ) -> LaneReport:
        """The report of a lane that was read to its end.

        `bounds`: its lowest and highest number. `is_there`: whether the table `lane` has its row, without which nothing can be
        appended to it. `settled`: see `LaneReport`.
        """
        lowest, highest = bounds
        if lowest is not None and lowest < 1:
            self._find("event_extra", "The lane has numbers below 1, where events and commands begin", seq=lowest)
        if highest is not None and highest > self._at.seq:
            self._doubt(highest, after=self._at.seq)
            self._at = Head(highest, self._at.link)
        for after, upto in self._doubts:
            found = examine(connection, self.number, after=after, upto=upto, start=self._start)
            self._findings += found
            if not found:
                self._find(
                    "unexplained", "A check failed, but a closer look found nothing wrong", seq=after + 1, last_seq=upto
                )
        if self._start.seq > 0:
            self._check_start(connection, highest or 0)
        if not is_there:
            self._find(
                "lane_missing", "The lane has no row in the table lane: nothing can be appended to it", seq=self._at.seq
            )
        counted = self._check_streams(connection)
        if self._points:
            last = self._points[-1]
            what = f"Seal {last.seal} covers events up to {last.seq}, but the lane ends before"
            self._find("tail_missing", what, seq=self._at.seq + 1, last_seq=last.seq)
        elif counted > self._at.seq >= self._start.seq:
            what = f"The versions in the table stream add up to {counted}, but the lane ends before"
            self._find("tail_missing", what, seq=self._at.seq + 1, last_seq=counted)
        return LaneReport(
            lane=self.number,
            events=self.events,
            commands=self.commands,
            findings=self._findings[:FINDINGS_MAX],
            versions=self._versions,
            settled=settled,
        )

    def _check_start(self, connection: Connection, highest: int) -> None:
        """Compare the lane at the start with the seal behind which the verification began."""
        start = self._start
        if highest < start.seq:
            what = f"The last seal covers events up to {start.seq}, but the lane ends before"
            self._find("tail_missing", what, seq=highest + 1, last_seq=start.seq)
            self._at = Head(highest, start.link)
            return
        row = connection.execute(_LINK_AT, (self.number, start.seq), binary=True).fetchone()
        if row != (start.link,):
            what = "The last seal, after which this verification begins, does not match the events before it: verify the whole lane"
            self._find("rewritten", what, seq=1, last_seq=start.seq)

    def _doubt(self, upto: int, *, after: int) -> None:
        if self._doubts and self._doubts[-1][1] >= after:
            after = self._doubts.pop()[0]
        self._doubts.append((after, upto))

    def _check_points(self, window: Window) -> None:
        if not self._points or self._points[0].seq >= window.first_seqs[-1] + window.event_counts[-1]:
            return
        ends = map(int.__add__, window.first_seqs, window.event_counts)
        links = {end - 1: link for end, link in zip(ends, window.links, strict=True)}
        while self._points and self._points[0].seq <= max(links):
            point = self._points.pop(0)
            if point.seq > self._point_seq:
                # Several seals may name the same number, with different links.
                self._sealed_seq, self._point_seq = self._point_seq, point.seq
            if links.get(point.seq) != point.link:
                what = f"Seal {point.seal} does not match these events"
                self._find("rewritten", what, seq=self._sealed_seq + 1, last_seq=point.seq)
                # All later links of the lane build on this one.
                self._points = []

    def _check_versions(self, window: Window) -> None:
        versions = self._versions
        known = versions.get
        for seq, (stream, version) in zip(window.seqs, window.stream_versions(), strict=True):
            before = known(stream, 0)
            if before + 1 != version:
                what = f"Version {version} of the stream follows {before}"
                self._find("version_gap", what, seq=seq, stream_id=UUID(bytes=stream))
            elif version == 1 and lane_of_bytes(stream) != self.number:
                self._find("wrong_lane", "The stream belongs to another lane", seq=seq, stream_id=UUID(bytes=stream))
            versions[stream] = version

    def _check_streams(self, connection: Connection) -> int:
        """Compare the versions of the table `stream` with the events. Returns how many events the lane has according to the table."""
        rows = connection.execute(_STREAMS, (self.number,), binary=True).fetchall()
        stored: dict[bytes, int | None] = dict(rows)
        if len(stored) < len(rows):
            stream, count = Counter(stream for stream, _ in rows).most_common(1)[0]
            what = f"The table stream has {count} rows for this stream"
            self._find("stream_wrong", what, stream_id=UUID(bytes=stream))
        counted = sum(version or 0 for version in stored.values())
        if self._start.seq > 0:
            stored = {stream: version for stream, version in stored.items() if stream in self._versions}
        if stored == self._versions:
            return counted
        for stream in sorted(stored.keys() | self._versions.keys()):
            says, has = stored.get(stream), self._versions.get(stream)
            if says != has:
                what = f"The table stream has version {says}, but the events end with version {has}"
                self._find("stream_wrong", what, stream_id=UUID(bytes=stream))
        return counted

    def _find(self, kind: str, what: str, **place: Any) -> None:
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(kind=kind, what=what, lane=self.number, **place))
