"""Verifies lanes side by side on one connection, and then the read tables of their instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection

from events.finding import FINDINGS_MAX, Finding, Note
from events.ids import SEQ_MAX
from events.pacing import Pace
from events.seal import Head
from events.verified_lane import BEGINNING, Lane, LaneReport, Point
from events.verify import finish, read
from events.window import Window
from hydracore.audit import snapshots, sums, tables
from hydracore.audit.matching import Matching
from hydracore.audit.newer import Newer
from hydracore.audit.served import served
from projections.definition import Inline

#: The most streams of lanes whose ends are checked in one snapshot, unless a single lane has more: some
#: hundredths of a second.
FINISHED_AT_ONCE = 10_000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One lane to verify, in the form that is sent to a process.

    `points`: what seals say of it, in order. `along`: whether sums are added up while the lane is verified, which takes
    memory; otherwise it is read once more for them. `to_fold`: the number of events that the lane's snapshots cover.
    """

    lane: int
    start: Head = BEGINNING
    upto: int = SEQ_MAX
    points: list[Point] = []
    replay: bool = True
    along: bool = False
    to_fold: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the lane is compared from its beginning. Only then are tables compared that add up all events."""
        return self.replay and self.start == BEGINNING

    @property
    def passes(self) -> int:
        """How often each event is read: for the chain, for the rows of its instance, and for the sums."""
        return 1 + self.replay + (self.is_whole and not self.along)

    @property
    def work(self) -> int:
        """The number of events to read, each counted as often as it is read."""
        return max(0, self.upto - self.start.seq) * self.passes + self.to_fold


def verify_some(
    connection: Connection, jobs: list[Job], pace: Pace, progress: Callable[[int], None]
) -> list[LaneReport]:
    """Verify some lanes side by side, and the end of each; then, where jobs ask for it (`replay`), the read tables."""

    def done(events: int) -> None:
        progress(events)
        pace.rest(connection)

    adding = _adding(connection, jobs)
    matching = Matching(connection, [job.lane for job in jobs if job.is_whole])

    def take_fitting(lane: int, window: Window) -> None:
        if lane in adding:
            adding[lane].take(window)
        progress(matching.take(lane, window))

    lanes = [Lane(job.lane, start=job.start, upto=job.upto, points=job.points) for job in jobs]
    read(connection, lanes, after_each=done, take_fitting=take_fitting if any(job.is_whole for job in jobs) else None)
    done(matching.compare())
    reports = list[LaneReport]()
    for some in _in_pieces(lanes):
        with connection.transaction():
            reports += finish(connection, some)
        done(0)  # Events that have come since were not counted as work.
    replayed = [both for both in zip(jobs, reports, strict=True) if both[0].replay]
    _compare_tables(connection, replayed, matching.found, done)
    for job, report in zip(jobs, reports, strict=True):
        if job.replay:
            _compare_snapshots(connection, job, report, done)
        if job.is_whole:
            _compare_sums(connection, job, report, adding.pop(job.lane, None), done)
    return reports


def _adding(connection: Connection, jobs: Sequence[Job]) -> dict[int, sums.Along]:
    """The sums that are added up while lanes are verified, by lane."""
    lanes = [job.lane for job in jobs if job.is_whole and job.along]
    followed = served(connection).followed if lanes else []
    room = sums.Room()
    return {lane: sums.Along(lane, followed, room) for lane in lanes if followed}


def _in_pieces(lanes: Sequence[Lane]) -> Iterator[list[Lane]]:
    """The lanes in groups that have at most `FINISHED_AT_ONCE` streams, unless a single lane has more."""
    some, streams = list[Lane](), 0
    for lane in lanes:
        if some and streams + lane.versions_known > FINISHED_AT_ONCE:
            yield some
            some, streams = [], 0
        some.append(lane)
        streams += lane.versions_known
    if some:
        yield some


def _compare_tables(
    connection: Connection,
    looked_at: Sequence[tuple[Job, LaneReport]],
    matching: Mapping[bytes, int],
    done: Callable[[int], None],
) -> None:
    """Compare the streams that had moved before the ends of their lanes were read.

    Those that were found `matching` are compared again only if they have moved on since, or something is
    wrong with their lane.
    """
    projections = served(connection).inline
    if not projections:
        return
    by_lane = {report.lane: report for _, report in looked_at}
    left = {report.lane: _left(report, matching) for _, report in looked_at}
    # In a verification since a seal, whole histories are folded, although only their ends were counted as work.
    share = _Share(
        sum(max(0, job.upto - job.start.seq) for job, _ in looked_at) - sum(matching.values()),
        of=sum(version for streams in left.values() for _, version in streams),
    )
    for part in tables.parts(left):
        for found in _differences(connection, part, projections):
            assert found.lane is not None, "whatever is compared is of a lane"
            _add(by_lane[found.lane], found)
        done(share.next(part.events))


def _left(report: LaneReport, matching: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    settled = islice(report.versions.items(), report.settled)
    # In a lane with findings, such as a stream that is there twice, a match proves nothing.
    return list(settled) if report.findings else [each for each in settled if matching.get(each[0]) != each[1]]


class _Share:
    """Scales progress: reports as large a share of `to_do` as was done of `of`."""

    def __init__(self, to_do: int, *, of: int) -> None:
        self._to_do = to_do
        self._of = of
        self._done = self._told = 0

    def next(self, done: int) -> int:
        self._done += done
        before, self._told = self._told, self._to_do * self._done // max(1, self._of)
        return self._told - before


def _differences(connection: Connection, part: tables.Part, projections: Sequence[Inline]) -> list[Finding | Newer]:
    try:
        with connection.transaction():
            return list(tables.compare(connection, part, projections))
    except psycopg.DataError as error:
        # A value that the database cannot process: parts are halved until its stream is alone, so that
        # it hides nothing else.
        if len(part.lanes) > 1:
            return [found for half in part.halves() for found in _differences(connection, half, projections)]
        ((stream, lane),) = part.lanes.items()
        what = f"The history or the rows cannot be read: {type(error).__name__}"
        return [Finding(kind="history_broken", what=what, lane=lane, stream_id=UUID(bytes=stream))]


def _compare_snapshots(connection: Connection, job: Job, report: LaneReport, done: Callable[[int], None]) -> None:
    left = job.to_fold

    def after_each(events: int) -> None:
        # Events beyond `to_fold`, such as those of newer snapshots, were not counted as work.
        nonlocal left
        told = min(events, left)
        left -= told
        done(told)

    among = None if job.start == BEGINNING else report.versions
    for found in snapshots.compare(connection, job.lane, among=among, after_each=after_each):
        _add(report, found)
    done(left)  # Snapshots may cover fewer events than they say, or events that cannot be read.


def _compare_sums(
    connection: Connection, job: Job, report: LaneReport, along: sums.Along | None, done: Callable[[int], None]
) -> None:
    # Read for each lane, because a swap may come between two.
    followed = served(connection).followed

    def after_each(events: int) -> None:
        # With `along` it could not be foreseen that the lane is read once more: that was not counted as work.
        done(0 if job.along else events)

    if followed:
        # Since the verification began, followers had time to reach the head that the lane had then.
        for found in sums.compare(connection, job.lane, followed, due=job.upto, after_each=after_each, along=along):
            _add(report, found)


def _add(report: LaneReport, found: Finding | Newer | Note) -> None:
    if isinstance(found, Note):
        report.notes.add(found)
    elif isinstance(found, Newer):
        if len(report.notes) < FINDINGS_MAX:
            report.notes.add(found.note)
    # The log's own findings may already be `FINDINGS_MAX`.
    elif len(report.findings) < 2 * FINDINGS_MAX:
        report.findings.append(found)
