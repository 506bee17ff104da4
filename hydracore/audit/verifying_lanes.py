"""Verifies several lanes at the same time on one connection, and then the read tables of their instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection

from events.ids import SEQ_MAX
from events.lane_verification import LANE_START, LaneReport, LaneVerification, SealPoint
from events.pacing import Pace
from events.seal import Head
from events.verification_findings import FINDINGS_MAX, Finding, Note
from events.verify import check_lanes, finish_lanes
from events.window import Window
from hydracore.audit import followed_tables, inline_tables, snapshots
from hydracore.audit.newer_events import NewerEvent
from hydracore.audit.served_projections import find_served_projections
from hydracore.audit.stream_matcher import StreamMatcher
from projections.definition import Inline

#: The most streams of the lanes whose ends are checked in one snapshot, unless a single lane has more. That many
#: take some hundredths of a second.
STREAMS_PER_SNAPSHOT = 10_000


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One lane to verify, in the form that is sent to a process.

    `points`: what seals say of it, in order. `fold_while_verifying`: whether followed projections are folded while the
    lane is verified, which takes memory; otherwise the lane is read once more for them. `snapshot_events`: the number
    of events that the lane's snapshots cover.
    """

    lane: int
    start: Head = LANE_START
    upto: int = SEQ_MAX
    points: list[SealPoint] = []
    replay: bool = True
    fold_while_verifying: bool = False
    snapshot_events: int = 0

    @property
    def is_from_beginning(self) -> bool:
        """Whether the lane is compared from its beginning. Only then can followed projections be compared."""
        return self.replay and self.start == LANE_START

    @property
    def passes(self) -> int:
        """How often each event is read: for the chain, for the inline rows, and for the followed projections."""
        return 1 + self.replay + (self.is_from_beginning and not self.fold_while_verifying)

    @property
    def work(self) -> int:
        """The number of events to read, each counted as often as it is read."""
        return max(0, self.upto - self.start.seq) * self.passes + self.snapshot_events


def verify_lanes(
    connection: Connection, jobs: list[Job], pace: Pace, progress: Callable[[int], None]
) -> list[LaneReport]:
    """Verify lanes up to their ends, all at the same time; then, for jobs with `replay`, their read tables."""

    def advance(events: int) -> None:
        progress(events)
        pace.rest(connection)

    folds_by_lane = _begin_lane_folds(connection, jobs)
    matcher = StreamMatcher(connection, [job.lane for job in jobs if job.is_from_beginning])

    def take_fitting(lane: int, window: Window) -> None:
        if lane in folds_by_lane:
            folds_by_lane[lane].take(window)
        progress(matcher.take(lane, window))

    lanes = [LaneVerification(job.lane, start=job.start, upto=job.upto, seal_points=job.points) for job in jobs]
    check_lanes(
        connection,
        lanes,
        on_read=advance,
        on_valid_window=take_fitting if any(job.is_from_beginning for job in jobs) else None,
    )
    advance(matcher.compare())
    reports = list[LaneReport]()
    for batch in _lane_batches(lanes):
        with connection.transaction():
            reports += finish_lanes(connection, batch)
        advance(0)  # Events that have come since were not counted as work.
    replayed = [both for both in zip(jobs, reports, strict=True) if both[0].replay]
    _compare_inline_tables(connection, replayed, matcher.matched, advance)
    for job, report in zip(jobs, reports, strict=True):
        if job.replay:
            _compare_snapshots(connection, job, report, advance)
        if job.is_from_beginning:
            _compare_followed_tables(connection, job, report, folds_by_lane.pop(job.lane, None), advance)
    return reports


def _begin_lane_folds(connection: Connection, jobs: Sequence[Job]) -> dict[int, followed_tables.LaneFolds]:
    """Empty folds for the lanes whose followed projections are folded while they are verified, by lane."""
    lanes = [job.lane for job in jobs if job.is_from_beginning and job.fold_while_verifying]
    followed = find_served_projections(connection).followed if lanes else []
    budget = followed_tables.MemoryBudget()
    return {lane: followed_tables.LaneFolds(lane, followed, budget) for lane in lanes if followed}


def _lane_batches(lanes: Sequence[LaneVerification]) -> Iterator[list[LaneVerification]]:
    """The lanes in batches that have at most `STREAMS_PER_SNAPSHOT` streams, unless a single lane has more."""
    batch, streams = list[LaneVerification](), 0
    for lane in lanes:
        if batch and streams + lane.versions_known > STREAMS_PER_SNAPSHOT:
            yield batch
            batch, streams = [], 0
        batch.append(lane)
        streams += lane.versions_known
    if batch:
        yield batch


def _compare_inline_tables(
    connection: Connection,
    verified: Sequence[tuple[Job, LaneReport]],
    matched: Mapping[bytes, int],
    advance: Callable[[int], None],
) -> None:
    """Compare the rows of the streams that had events before the ends of their lanes were read.

    Streams that `matched` (by id, with the number of their events) are compared again only if they have more
    events since, or if something is wrong with their lane.
    """
    projections = find_served_projections(connection).inline if verified else []
    if not projections:
        return
    by_lane = {report.lane: report for _, report in verified}
    unmatched = {report.lane: _unmatched(report, matched) for _, report in verified}
    # In a verification since a seal, whole histories are folded, although only their ends were counted as work.
    scaled = _ScaledProgress(
        sum(max(0, job.upto - job.start.seq) for job, _ in verified) - sum(matched.values()),
        of=sum(version for streams in unmatched.values() for _, version in streams),
    )
    for batch in inline_tables.batches(unmatched):
        for found in _differences(connection, batch, projections):
            assert found.lane is not None, "everything compared belongs to a lane"
            _add(by_lane[found.lane], found)
        advance(scaled.next(batch.events))


def _unmatched(report: LaneReport, matched: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    settled = islice(report.versions.items(), report.streams_before_finish)
    # In a lane with findings, such as a stream that is there twice, a match proves nothing.
    return list(settled) if report.findings else [each for each in settled if matched.get(each[0]) != each[1]]


class _ScaledProgress:
    """Scales progress: reports the same share of `total` as was done of `of`."""

    def __init__(self, total: int, *, of: int) -> None:
        self._total = total
        self._of = of
        self._done = self._reported = 0

    def next(self, done: int) -> int:
        self._done += done
        before, self._reported = self._reported, self._total * self._done // max(1, self._of)
        return self._reported - before


def _differences(
    connection: Connection, batch: inline_tables.StreamBatch, projections: Sequence[Inline]
) -> list[Finding | NewerEvent]:
    try:
        with connection.transaction():
            return list(inline_tables.compare(connection, batch, projections))
    except psycopg.DataError as error:
        # A value that the database cannot process: batches are halved until its stream is alone, so that
        # it hides nothing else.
        if len(batch.lanes) > 1:
            return [found for half in batch.halves() for found in _differences(connection, half, projections)]
        ((stream, lane),) = batch.lanes.items()
        what = f"The history or the rows cannot be read: {type(error).__name__}"
        return [Finding(kind="history_broken", what=what, lane=lane, stream_id=UUID(bytes=stream))]


def _compare_snapshots(connection: Connection, job: Job, report: LaneReport, advance: Callable[[int], None]) -> None:
    left = job.snapshot_events

    def after_each(events: int) -> None:
        # Events beyond `snapshot_events`, such as those of newer snapshots, were not counted as work.
        nonlocal left
        counted = min(events, left)
        left -= counted
        advance(counted)

    among = None if job.start == LANE_START else report.versions
    for found in snapshots.compare(connection, job.lane, among=among, after_each=after_each):
        _add(report, found)
    advance(left)  # Snapshots may cover fewer events than they say, or events that cannot be read.


def _compare_followed_tables(
    connection: Connection,
    job: Job,
    report: LaneReport,
    lane_folds: followed_tables.LaneFolds | None,
    advance: Callable[[int], None],
) -> None:
    # Read for each lane, because a swap may come between two.
    followed = find_served_projections(connection).followed

    def after_each(events: int) -> None:
        # With `fold_while_verifying` it was not foreseen that the lane is read once more: that was not counted as work.
        advance(0 if job.fold_while_verifying else events)

    if followed:
        # Since the verification began, followers had time to reach the head that the lane had then.
        for found in followed_tables.compare(
            connection, job.lane, followed, due=job.upto, after_each=after_each, lane_folds=lane_folds
        ):
            _add(report, found)


def _add(report: LaneReport, found: Finding | NewerEvent | Note) -> None:
    if isinstance(found, Note):
        report.notes.add(found)
    elif isinstance(found, NewerEvent):
        if len(report.notes) < FINDINGS_MAX:
            report.notes.add(found.note)
    # The log's own findings may already be `FINDINGS_MAX`.
    elif len(report.findings) < 2 * FINDINGS_MAX:
        report.findings.append(found)
