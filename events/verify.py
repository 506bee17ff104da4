"""Verifies one lane of the log: every digest, every link, every number, every version, and what the seals say of it.

The quick way looks at windows of a thousand events and only asks whether all is as it must be: the database puts the bytes
together, hashlib hashes them, and lists are compared as wholes. What does not fit is looked at again, event by event,
by `events.examine`, which says what is wrong and where. Each link is computed from the one that is stored before it, so an
edit shows where it is and nowhere else.

Call it in a repeatable-read transaction: writers go on, and what is read belongs together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import Connection

from events.digest import GENESIS
from events.examine import POSTGRES_EPOCH_US, examine
from events.finding import FINDINGS_MAX, Finding
from events.ids import lane_of
from events.seal import Head
from events.sql import Statements

_SQL = Statements("events", "verify.sql")
_LANE = _SQL["lane"]
_HEAD = _SQL["head"]
_BOUNDS = _SQL["bounds"]
_STREAMS = _SQL["streams"]
_VERSIONS_AT = _SQL["versions_at"]

#: How many numbers one window has: large enough to share the cost of a row, small enough to stay in the caches.
WINDOW = 1_000

#: Where a lane begins.
BEGINNING = Head(0, GENESIS)

_ARRAYS = ("int8[]", "int4[]", *("bytea[]",) * 5, "int8[]", *("bytea[]",) * 3)
#: A frame's stream and version: behind the length of each.
_stream_and_version = struct.Struct(">8x16s8xq").unpack_from
_DIGEST_LENGTH = len(GENESIS).to_bytes(8)


class Point(NamedTuple):
    """What a seal says of a lane: up to `seq`, it ended with `link`."""

    seq: int
    link: bytes
    seal: int


class LaneReport(msgspec.Struct, frozen=True, kw_only=True):
    lane: int
    events: int
    commands: int
    findings: list[Finding]
    #: How many events each stream has that moved after the start, by the bytes of its id.
    versions: dict[bytes, int]


class _Window(NamedTuple):
    first_seqs: list[int]
    event_counts: list[int]
    frames: list[bytes]
    digests: list[bytes]
    links: list[bytes]
    places: list[bytes]
    envelopes: list[bytes]
    seqs: list[int]
    event_frames: list[bytes]
    event_digests: list[bytes]
    event_envelopes: list[bytes]


def verify_lane(
    connection: Connection,
    lane: int,
    *,
    start: Head = BEGINNING,
    points: Sequence[Point] = (),
    progress: Callable[[int], None] | None = None,
) -> LaneReport:
    """Everything that is wrong with a lane after `start`, which is taken as good.

    `points`: what the seals say, in order. `progress` is told how many events were looked at since it was last called.
    """
    check = _Lane(lane, start, [point for point in points if point.seq > start.seq])
    if start.seq > 0:
        parameters = {"lane": lane, "after": start.seq}
        check.versions.update(connection.execute(_VERSIONS_AT, parameters, binary=True))
    with connection.cursor().copy(_LANE, {"lane": lane, "after": start.seq, "window": WINDOW}) as copy:
        copy.set_types(_ARRAYS)
        for row in copy.rows():
            seen = check.take(_Window(*(column or [] for column in row)))
            if progress is not None:
                progress(seen)
    check.finish(connection)
    return LaneReport(
        lane=lane,
        events=check.events,
        commands=check.commands,
        findings=check.findings[:FINDINGS_MAX],
        versions=check.versions,
    )


class _Lane:
    def __init__(self, lane: int, start: Head, points: list[Point]) -> None:
        self.events = self.commands = 0
        self.findings: list[Finding] = []
        #: The version that each stream has reached, by the bytes of its id.
        self.versions: dict[bytes, int] = {}
        self._lane = lane
        self._start = start
        self._at = start
        self._points = points
        self._sealed_seq = start.seq
        #: Ranges of numbers (after, up to) in which something does not fit.
        self._doubts: list[tuple[int, int]] = []

    def take(self, window: _Window) -> int:
        """Check the next window, and go on behind it whatever it was like. How many events it has."""
        good = _fits(window, after=self._at)
        self._check_points(window)
        if good:
            self._check_versions(window)
        else:
            self._doubt(max([self._at.seq, *window.seqs, *window.first_seqs]))
            self.versions.update(_stream_and_version(frame) for frame in window.event_frames)
        seq = window.seqs[-1] if window.seqs else self._at.seq
        self._at = Head(max(seq, self._at.seq), window.links[-1] if window.links else self._at.link)
        self.commands += len(window.first_seqs)
        self.events += len(window.seqs)
        return len(window.seqs)

    def finish(self, connection: Connection) -> None:
        """What can be said once the last window was seen."""
        lowest, highest = connection.execute(_BOUNDS, (self._lane,)).fetchone() or (None, None)
        if lowest is not None and lowest < 1:
            self._find("event_extra", "The numbers of a lane begin at 1", seq=lowest)
        if highest is not None and highest > self._at.seq:
            self._doubt(highest)
            self._at = Head(highest, self._at.link)
        for after, upto in self._doubts:
            found = examine(connection, self._lane, after=after, upto=upto, start=self._start)
            self.findings += found
            if not found:
                self._find("unexplained", "Something does not fit, and nothing is wrong", seq=after + 1, last_seq=upto)
        self._check_head(connection)
        self._check_streams(connection)
        if self._points:
            last = self._points[-1]
            what = f"Seal {last.seal} has seen events up to {last.seq}, and the lane ends before"
            self._find("tail_missing", what, seq=self._at.seq + 1, last_seq=last.seq)

    def _doubt(self, upto: int) -> None:
        after = self._at.seq
        if self._doubts and self._doubts[-1][1] >= after:
            after = self._doubts.pop()[0]
        self._doubts.append((after, upto))

    def _check_points(self, window: _Window) -> None:
        if not window.first_seqs or not self._points:
            return
        if self._points[0].seq >= window.first_seqs[-1] + window.event_counts[-1]:
            return
        ends = map(int.__add__, window.first_seqs, window.event_counts)
        links = {end - 1: link for end, link in zip(ends, window.links, strict=True)}
        while self._points and self._points[0].seq <= max(links):
            point = self._points.pop(0)
            if links.get(point.seq) != point.link:
                what = f"Seal {point.seal} was made of other events than these"
                self._find("rewritten", what, seq=self._sealed_seq + 1, last_seq=point.seq)
                # Whatever comes later in the lane stands on these.
                self._points = []
            self._sealed_seq = point.seq

    def _check_versions(self, window: _Window) -> None:
        versions = self.versions
        known = versions.get
        for seq, (stream, version) in zip(window.seqs, map(_stream_and_version, window.event_frames), strict=True):
            before = known(stream, 0)
            if before + 1 != version:
                what = f"Version {version} of the stream follows {before}"
                self._find("version_gap", what, seq=seq, stream_id=UUID(bytes=stream))
            elif before == 0 and lane_of(UUID(bytes=stream)) != self._lane:
                self._find("wrong_lane", "The stream belongs to another lane", seq=seq, stream_id=UUID(bytes=stream))
            versions[stream] = version

    def _check_head(self, connection: Connection) -> None:
        row = connection.execute(_HEAD, (self._lane,), binary=True).fetchone()
        if row is None:
            self._find("head_wrong", "The lane has no row in lane_head", seq=self._at.seq)
        elif row[0] != self._at.seq:
            what = f"lane_head says that the lane ends with {row[0]}, and its events end with {self._at.seq}"
            self._find("head_wrong", what, seq=min(row[0], self._at.seq) + 1, last_seq=max(row[0], self._at.seq))
        elif row[1] != self._at.link:
            self._find("head_wrong", "lane_head has another link than the lane's last command", seq=self._at.seq)

    def _check_streams(self, connection: Connection) -> None:
        stored: dict[bytes, int] = dict(connection.execute(_STREAMS, (self._lane,), binary=True).fetchall())
        if self._start.seq > 0:
            stored = {stream: version for stream, version in stored.items() if stream in self.versions}
        if stored == self.versions:
            return
        for stream in sorted(stored.keys() | self.versions.keys()):
            says, has = stored.get(stream), self.versions.get(stream)
            if says != has:
                what = f"The table stream says version {says}, and the events say {has}"
                self._find("stream_wrong", what, stream_id=UUID(bytes=stream))

    def _find(self, kind: str, what: str, **place: Any) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(kind=kind, what=what, lane=self._lane, **place))


def _fits(window: _Window, *, after: Head) -> bool:
    """Whether a window is what must follow `after`, to the last bit."""
    if not window.seqs or window.seqs != list(range(after.seq + 1, after.seq + 1 + len(window.seqs))):
        return False
    digests = [sha256(frame).digest() for frame in window.event_frames]
    if digests != window.event_digests:
        return False
    try:
        if _command_digests(window, digests) != window.digests or _links(window, after) != window.links:
            return False
    except (struct.error, OverflowError):
        return False  # Times that the log never writes.
    first, expected = after.seq + 1, list[int]()
    for count in window.event_counts:
        expected.append(first)
        first += count
    if expected != window.first_seqs or first != window.seqs[-1] + 1:
        return False
    pairs = zip(window.envelopes, window.event_counts, strict=True)
    return [envelope for envelope, count in pairs for _ in range(count)] == window.event_envelopes


def _command_digests(window: _Window, digests: list[bytes]) -> list[bytes]:
    """The digests of the commands, computed anew."""
    found: list[bytes] = []
    at = 0
    for frame, count in zip(window.frames, window.event_counts, strict=True):
        if count == 1 and at < len(digests):
            tail = _DIGEST_LENGTH + digests[at]
        else:
            tail = b"".join([_DIGEST_LENGTH + digest for digest in digests[at : at + count]])
        found.append(sha256(frame + tail).digest())
        at += count
    return found


def _links(window: _Window, after: Head) -> list[bytes]:
    """The links of the commands, each computed from the one that is stored before it."""
    found: list[bytes] = []
    for before, digest, (first_seq, recorded) in zip(
        [after.link, *window.links[:-1]], window.digests, _places(window.places), strict=True
    ):
        place = first_seq.to_bytes(8) + (recorded + POSTGRES_EPOCH_US).to_bytes(8)
        found.append(sha256(before + digest + place).digest())
    return found


def _places(places: list[bytes]) -> Iterator[tuple[int, int]]:
    return struct.iter_unpack(">qq", b"".join(places))  # pyright: ignore[reportReturnType] - two numbers each
