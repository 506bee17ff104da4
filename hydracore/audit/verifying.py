"""`audit verify`: seals first, then lane after lane, each with its read tables in one snapshot.

A lane is verified in a transaction of its own, so that none of them is open for long; what is compared with each other
(a lane's events, links, streams and rows) is written together and therefore seen together. Several processes may share
the lanes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice, takewhile
from multiprocessing import get_context

import msgspec
import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.rows import class_row

from events.finding import FINDINGS_MAX, Finding
from events.ids import LANES
from events.seal import Head, Seal
from events.sql import Statements
from events.verify import BEGINNING, LaneReport, Point, verify_lane
from hydracore.audit import tables
from hydracore.audit.errors import NoSeal
from hydracore.audit.seal_check import SealsChecked, check_seals
from hydracore.audit.seal_file import SealFile
from projections.processes import deaf_to_interrupts

_SQL = Statements("events", "verify.sql")
_STRANGERS = _SQL["strangers"]
_POINTS = _SQL["points"]
_HEADS = Statements("events", "store.sql")["heads"]
_SEALS = Statements("hydracore.audit", "sealing.sql")["all_seals"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be verified. `public_key`: the only key whose seals count; None accepts any."""

    conninfo: str
    lanes: tuple[int, ...] = tuple(range(LANES))
    since_seal: bool = False
    replay: bool = True
    seals: SealFile | None = None
    public_key: bytes | None = None
    workers: int = 1

    @property
    def whole(self) -> bool:
        return len(self.lanes) == LANES and not self.since_seal


class Report(msgspec.Struct, kw_only=True):
    """What was looked at, what must not be, and what the reader should know besides."""

    lanes: int
    events: int = 0
    commands: int = 0
    streams: int = 0
    seals: int = 0
    tables: list[str] = []
    findings: list[Finding] = []
    notes: list[str] = []
    seconds: float = 0.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One lane, as it travels to a process. `points`: what is known of it from seals that the database does not have."""

    lane: int
    start: Head = BEGINNING
    points: list[Point] = []
    #: The number of the last seal that counts.
    sealed_upto: int = 0
    replay: bool = True


class Progress:
    """Told how much there is to do, and how much of it was done since. This one keeps it to itself."""

    def begin(self, total: int) -> None: ...

    def advance(self, done: int) -> None: ...


def verify(request: Request, progress: Progress) -> Report:
    """Everything that is wrong with the log and with what is made of it.

    Raises psycopg's errors, `OSError` where the file with the seals cannot be read, and `NoSeal`.
    """
    began_s = time.monotonic()
    report = Report(lanes=len(request.lanes))
    with psycopg.connect(request.conninfo, autocommit=True) as connection:
        sealed = _check_seals(connection, request, report)
        if request.since_seal and sealed.last is None:
            raise NoSeal
        heads: dict[int, int] = dict(connection.execute(_HEADS).fetchall())
        for table, lane, seq in connection.execute(_STRANGERS):
            what = f"The table {table} has rows of lane {lane}, and there is no such lane"
            report.findings.append(Finding(kind="wrong_lane", what=what, lane=lane, seq=seq))
    start = sealed.last if request.since_seal else None
    jobs = [
        Job(
            lane=lane,
            start=BEGINNING if start is None else start.head(lane),
            points=sealed.points.get(lane, []),
            sealed_upto=sealed.upto,
            replay=request.replay,
        )
        for lane in request.lanes
    ]
    left = sum(max(0, heads.get(job.lane, 0) - job.start.seq) for job in jobs)
    progress.begin(left * 2 if request.replay else left)
    for lane_report in _reports(jobs, request, progress):
        report.events += lane_report.events
        report.commands += lane_report.commands
        report.streams += len(lane_report.versions)
        report.findings += lane_report.findings
    if request.replay:
        _finish_replay(request, report)
    report.seconds = time.monotonic() - began_s
    return report


def _check_seals(connection: Connection, request: Request, report: Report) -> SealsChecked:
    # A seal is in the database before it is in the copy: what the copy has now, the look after this one finds there too.
    newest = 0 if request.seals is None else request.seals.last_number()
    with connection.transaction(), connection.cursor("seals", row_factory=class_row(Seal)) as cursor:
        copies = () if request.seals is None else takewhile(lambda seal: seal.number <= newest, request.seals.read())
        sealed = check_seals(cursor.execute(_SEALS), copies, public_key=request.public_key)
    report.seals = sealed.count
    report.findings += sealed.findings[:FINDINGS_MAX]
    if sealed.count == 0:
        report.notes.append("There are no seals: whether the end was cut off, or all written anew, cannot be told")
    elif request.public_key is None:
        report.notes.append("Any key was accepted for the seals: give the public key that they must be signed with")
    return sealed


def _reports(jobs: list[Job], request: Request, progress: Progress) -> Iterator[LaneReport]:
    if request.workers == 1:
        with _connected(request.conninfo) as connection:
            for job in jobs:
                with connection.transaction():
                    yield verify_one(connection, job, progress.advance)
        return
    # Not forked: a child with this one's threads and locks half copied could hang.
    pool = ProcessPoolExecutor(request.workers, mp_context=get_context("spawn"), initializer=_die_of_interrupts)
    try:
        with deaf_to_interrupts():
            verified = [pool.submit(_verify_in_process, request.conninfo, job) for job in jobs]
        for lane in verified:
            report = lane.result()
            progress.advance(report.events * 2 if request.replay else report.events)
            yield report
    finally:
        pool.shutdown(cancel_futures=True)


def _die_of_interrupts() -> None:
    """In silence, and in the middle of a lane: nobody waits for its report any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _verify_in_process(conninfo: str, job: Job) -> LaneReport:
    with _connected(conninfo) as connection, connection.transaction():
        return verify_one(connection, job, _nobody)


def _nobody(_done: int) -> None:
    """Another process has no screen."""


def verify_one(connection: Connection, job: Job, progress: Callable[[int], None]) -> LaneReport:
    """One lane and, where that is asked for, the rows of its instances, in a transaction that has seen nothing yet."""
    if job.replay:
        tables.lock_tables(connection)
    parameters = {"lane": job.lane, "upto": job.sealed_upto}
    points = {Point(*row) for row in connection.execute(_POINTS, parameters, binary=True)}
    report = verify_lane(
        connection, job.lane, start=job.start, points=sorted(points.union(job.points)), progress=progress
    )
    if job.replay:
        served, _ = tables.live_inline(connection)
        found = tables.compare_streams(connection, job.lane, report.versions, served, progress)
        report.findings.extend(islice(found, FINDINGS_MAX))
    return report


def _finish_replay(request: Request, report: Report) -> None:
    with _connected(request.conninfo) as connection:
        served, unknown = tables.live_inline(connection)
        if request.whole:
            report.findings += islice(tables.strangers(connection, served), FINDINGS_MAX)
    report.tables = sorted(table.name for projection in served for table in projection.tables)
    report.notes += [f"{name} is served in a version that this code does not have: not compared" for name in unknown]


@contextmanager
def _connected(conninfo: str) -> Generator[Connection]:
    """A connection whose transactions each see one moment, and change nothing."""
    with psycopg.connect(conninfo) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection
