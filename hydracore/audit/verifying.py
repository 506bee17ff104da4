"""`audit verify`: checks the seals, then the lanes, several at the same time, and last the read tables.

The events up to a lane's head never change and need no snapshot. What is compared with each other (a lane's
end and its streams, an instance's history and its rows) is written in one transaction, and therefore read
in one: a short one, with pauses for writers between two. Several processes may share the lanes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice

import msgspec
import psycopg
from psycopg import Connection

from events.heads import HEADS
from events.ids import LANES
from events.lane_verification import LANE_START, LaneReport
from events.pacing import Pace
from events.seal import Seal
from events.sql import Statements
from events.verification_findings import FINDINGS_MAX, Finding, Note, note_sentences
from events.verify import LANES_AT_ONCE, LANES_AT_ONCE_MAX
from hydracore.audit import followed_tables, inline_tables, snapshots
from hydracore.audit.copy_lag import CopyLag
from hydracore.audit.errors import CopyEmpty, NoSeal
from hydracore.audit.schema_check import check_schema
from hydracore.audit.seal_check import SealCheck, check_seals, stored_seals
from hydracore.audit.seal_file import SealFile
from hydracore.audit.served_projections import find_served_projections
from hydracore.audit.verifying_lanes import Job, verify_lanes
from hydracore.audit.verifying_processes import read_only_connection, verify_in_processes
from hydracore.settings import PREPARE_AFTER

_SQL = Statements("events", "verify.sql")
_ROWS_OUTSIDE_LANES = _SQL["rows_outside_lanes"]

#: The most events of all lanes that are read at the same time, if these are more than `LANES_AT_ONCE` lanes; also the
#: most events of all lanes of a part whose followed projections are folded while they are verified.
CONCURRENT_EVENTS_MAX = 2_000_000

#: Where the number of processes is not given, another one is started per this many events, which take
#: some seconds, up to `WORKERS_MAX`: each holds a few hundred megabytes.
EVENTS_PER_WORKER = 256_000
WORKERS_MAX = 4


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify. `public_key`: the only accepted key of seals, with `former_keys` before it; None accepts any."""

    conninfo: str
    #: psycopg's; None where statements must not stay prepared.
    prepare_threshold: int | None = PREPARE_AFTER
    lanes: tuple[int, ...] = tuple(range(LANES))
    since_seal: bool = False
    replay: bool = True
    seals: SealFile | None = None
    #: Seals that were made before this must be in the copy. None: the newest few may be missing,
    #: whenever they were made.
    copied_before: datetime | None = None
    public_key: bytes | None = None
    former_keys: tuple[bytes, ...] = ()
    #: The number of processes that share the lanes. None: what the length of the log suggests,
    #: but at most one per core, and at most `WORKERS_MAX`.
    workers: int | None = 1
    #: Whether not to give way to writers.
    full_speed: bool = False

    @property
    def covers_whole_log(self) -> bool:
        return len(self.lanes) == LANES and not self.since_seal


class Report(msgspec.Struct, kw_only=True):
    """What was checked, what is wrong, and notes on what was not checked or was taken on trust."""

    lanes: int
    events: int = 0
    commands: int = 0
    streams: int = 0
    seals: int = 0
    tables: list[str] = []
    findings: list[Finding] = []
    notes: list[str] = []
    seconds: float = 0.0
    #: How much of `seconds` was spent resting, to give way to writers; with several workers, on average.
    rested_s: float = 0.0

    def turn_notes_into_findings(self) -> None:
        """Turn the notes, on what was not compared or was taken on trust, into findings."""
        self.findings += [Finding(kind="not_proven", what=note) for note in self.notes]
        self.notes = []


class Progress:
    """Receives how much there is to do, and then how much more of it was done. This class ignores both."""

    def begin(self, total: int) -> None: ...

    def advance(self, done: int) -> None: ...


def verify(request: Request, progress: Progress) -> Report:
    """Verify the seals, the log and the read tables, and report all that is wrong.

    Raises psycopg's errors, `OSError` where the file with the seals cannot be read, `CopyEmpty`, and `NoSeal`.
    """
    began_s = time.monotonic()
    report = Report(lanes=len(request.lanes))
    with psycopg.connect(request.conninfo, autocommit=True, prepare_threshold=request.prepare_threshold) as connection:
        missing = check_schema(connection, replay=request.replay)
        report.findings += missing.log + missing.replay
        if missing.log:
            report.lanes = 0
            return report
        if missing.replay:
            request = msgspec.structs.replace(request, replay=False)
        sealed = _check_seals(connection, request, report, Pace(full_speed=request.full_speed))
        if request.since_seal and sealed.last is None:
            raise NoSeal
        heads: dict[int, int] = {lane: head or 0 for lane, head in connection.execute(HEADS)}
        for table, lane, seq in connection.execute(_ROWS_OUTSIDE_LANES):
            what = f"The table {table} has rows of lane {lane} that do not exist in the log"
            report.findings.append(Finding(kind="wrong_lane", what=what, lane=lane, seq=seq))
        jobs = _jobs(connection, request, sealed, heads)
    workers = request.workers or _workers_for(jobs)
    parts = [_enable_folding(part) for part in _parts(jobs, workers)]
    progress.begin(sum(job.work for part in parts for job in part))
    notes = set[Note]()
    for lane_report in _reports(parts, workers, request, progress, report):
        report.events += lane_report.events
        report.commands += lane_report.commands
        report.streams += len(lane_report.versions)
        report.findings += lane_report.findings
        notes |= lane_report.notes
    report.notes += note_sentences(notes)[:FINDINGS_MAX]
    if request.replay:
        _finish_replay(request, report)
    report.seconds = time.monotonic() - began_s
    return report


def _check_seals(connection: Connection, request: Request, report: Report, pace: Pace) -> SealCheck:
    newest = 0 if request.seals is None else request.seals.last_number()
    if request.seals is not None and newest == 0 and next(stored_seals(connection), None) is not None:
        raise CopyEmpty(request.seals.path)
    # A seal is in the database before it is in the copy: what the copy has now is read from the database below, too.
    copies = () if request.seals is None else request.seals.read(upto=request.seals.path.stat().st_size)
    lag = CopyLag(newest)

    def paced(seals: Iterable[Seal]) -> Iterator[Seal]:
        for seal in seals:
            yield seal
            pace.rest(connection)

    sealed = check_seals(
        lag.observe(paced(stored_seals(connection))),
        paced(copies),
        public_key=request.public_key,
        former_keys=request.former_keys,
    )
    report.rested_s += pace.rested_s
    report.seals = sealed.count
    report.findings += sealed.findings[:FINDINGS_MAX]
    if request.seals is not None and lag.is_excessive(request.copied_before):
        report.notes.append(
            f"The copy ends with seal {newest}, but the database with seal {sealed.newest}: the seals in between were not compared"
        )
    if sealed.count == 0:
        report.notes.append(
            "There are no seals: a removed end of the log, or a completely rewritten log, would not be detected"
        )
    elif request.public_key is None:
        report.notes.append("Seals signed by any key were accepted: give the expected public key with --public-key")
    return sealed


def _jobs(connection: Connection, request: Request, sealed: SealCheck, heads: Mapping[int, int]) -> list[Job]:
    start = sealed.last if request.since_seal else None
    starts = {lane: LANE_START if start is None else start.head(lane) for lane in request.lanes}
    after = {lane: head.seq for lane, head in starts.items()}
    snapshot_events = snapshots.events_to_fold(connection, after) if request.replay else {}
    return [
        Job(
            lane=lane,
            start=starts[lane],
            upto=heads.get(lane, 0),
            points=sealed.points(lane),
            replay=request.replay,
            snapshot_events=snapshot_events.get(lane, 0),
        )
        for lane in request.lanes
    ]


def _parts(jobs: list[Job], workers: int) -> list[list[Job]]:
    """Divide the lanes into parts, whose lanes are read at the same time. Each worker gets equally many parts."""
    events = sum(max(0, job.upto - job.start.seq) for job in jobs)
    fitting = len(jobs) * CONCURRENT_EVENTS_MAX // max(1, events)
    rounds = -(-len(jobs) // (workers * min(max(LANES_AT_ONCE, fitting), LANES_AT_ONCE_MAX)))
    size = -(-len(jobs) // (workers * rounds))
    return [jobs[at : at + size] for at in range(0, len(jobs), size)]


def _enable_folding(jobs: list[Job]) -> list[Job]:
    """The same jobs, with `fold_while_verifying` for as many of them as should fit into memory."""
    events_left, chosen = CONCURRENT_EVENTS_MAX, list[Job]()
    for job in jobs:
        fold_while_verifying = job.is_from_beginning and job.upto <= events_left
        events_left -= max(0, job.upto) if fold_while_verifying else 0
        chosen.append(msgspec.structs.replace(job, fold_while_verifying=fold_while_verifying))
    return chosen


def _workers_for(jobs: list[Job]) -> int:
    events = sum(max(0, job.upto - job.start.seq) for job in jobs)
    return max(1, min(os.cpu_count() or 1, WORKERS_MAX, events // EVENTS_PER_WORKER))


def _reports(
    parts: list[list[Job]], workers: int, request: Request, progress: Progress, report: Report
) -> Iterator[LaneReport]:
    pace = Pace(full_speed=request.full_speed, readers=workers)
    connect_arguments = (request.conninfo, request.prepare_threshold)
    if workers > 1:
        for lanes, rested_s in verify_in_processes(workers, connect_arguments, parts, pace, progress.advance):
            report.rested_s += rested_s / workers
            yield from lanes
        return
    with read_only_connection(*connect_arguments) as connection:
        for jobs in parts:
            yield from verify_lanes(connection, jobs, pace, progress.advance)
    report.rested_s += pace.rested_s


def _finish_replay(request: Request, report: Report) -> None:
    with read_only_connection(request.conninfo, request.prepare_threshold) as connection:
        served = find_served_projections(connection)
        report.findings += served.findings
        report.notes += note_sentences(served.notes)
        if request.covers_whole_log:
            report.findings += islice(inline_tables.orphan_rows(connection, served.inline), FINDINGS_MAX)
            report.findings += islice(followed_tables.orphan_rows(connection, served.followed), FINDINGS_MAX)
    compared = [*served.inline, *(() if request.since_seal else served.followed)]
    report.tables = sorted(table.name for projection in compared for table in projection.tables)
    if request.since_seal and served.followed:
        names = ", ".join(projection.name for projection in served.followed)
        report.notes.append(f"Read tables of sums over the whole log were not compared: {names}")
