"""`audit export`: writes all events of a tenant or an instance, with what proves them without the database.

One statement reads the heads of all lanes; events up to these never change. So the export shows one
moment without a long transaction: the lanes are read one after the other in short statements, which do
not hinder writers. Memory holds the commands of one window of a lane, and one page of their events.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import Connection, IsolationLevel
from psycopg.rows import class_row

from events import pages
from events.digest import GENESIS
from events.errors import LogCorrupted
from events.ids import lane_of
from events.pacing import Pace
from events.seal import Head, Seal, require_well_formed
from events.sql import Statements
from hydracore.audit import export_records as r
from hydracore.audit.atomic_file import atomic_file, check_replaceable
from hydracore.audit.errors import NoSeal, NotInLog
from hydracore.audit.export_files import Format, WriteRecord, open_writer
from hydracore.audit.export_seals import SealFinder
from hydracore.audit.timestamps import require_time
from hydracore.audit.verifying import Progress
from hydracore.settings import PREPARE_AFTER

_SQL = Statements("hydracore.audit", "exporting.sql")
_RANGE_OF_INSTANCE = _SQL["range_of_instance"]
_RANGES_OF_TENANT = _SQL["ranges_of_tenant"]
_COMMANDS = _SQL["commands"]
_EVENTS = pages.insert_weight(_SQL["events"])
_LAST_COMMAND = _SQL["last_command"]
_STEPS = _SQL["steps"]
_SEALING = Statements("hydracore.audit", "sealing.sql")
_HEADS = _SEALING["heads"]
_LAST_SEAL = _SEALING["last_seal"]

#: The numbers of a lane that are read at a time.
WINDOW: Final = 5_000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to export, and where to. Either `tenant_id` or `instance_id` is given.

    `sealed_only`: whether to stop at the last seal, so that every event in the file can be proven. `key`: the
    seed of the key that signs seals, with which the file as a whole is signed; empty: it is not signed.
    """

    conninfo: str
    #: psycopg's; None where statements must not stay prepared.
    prepare_threshold: int | None = PREPARE_AFTER
    output: Path
    exported_at: datetime
    tenant_id: str | None = None
    instance_id: UUID | None = None
    format: Format = "jsonl"
    replace: bool = False
    sealed_only: bool = False
    key: bytes = b""
    #: Whether not to give way to writers.
    full_speed: bool = False


class ExportReport(msgspec.Struct, kw_only=True):
    """What the file holds. `steps`: of commands outside the scope of the export.

    `unsealed`: events that no seal of the database covers yet.
    """

    output: str
    tenant_id: str = ""
    instance_id: UUID | None = None
    events: int = 0
    commands: int = 0
    streams: int = 0
    lanes: int = 0
    steps: int = 0
    seals: int = 0
    unsealed: int = 0
    signed: bool = False
    size_bytes: int = 0
    seconds: float = 0.0
    #: How much of `seconds` was spent resting, to give way to writers.
    rested_s: float = 0.0


class _ExportedRange(NamedTuple):
    """The numbers of the first and the last exported event of a lane."""

    lane: int
    first: int
    last: int
    tenant_id: str


class _ChainRange(NamedTuple):
    """The part of a lane whose chain is in the file.

    `seal_number`: the seal at whose head it begins; 0: at the lane's beginning. `sealed_head`: the lane's
    head in the newest seal.
    """

    exported: _ExportedRange
    start: Head
    seal_number: int
    end: Head
    sealed_head: int


def export(request: Request, progress: Progress) -> ExportReport:
    """Write the file, completely or not at all.

    Raises `NotInLog`, `NoSeal`, `FileExists`, `NoRegularFile`, `ParquetMissing`, `ParquetBroken`, `LogCorrupted` where
    a seal is invalid, a command is missing or no calendar has a time, `OSError` and psycopg's errors.
    """
    assert (request.tenant_id is None) != (request.instance_id is None), "an instance or a tenant"
    check_replaceable(request.output, replace=request.replace)
    began_s = time.monotonic()
    with psycopg.connect(request.conninfo, autocommit=True, prepare_threshold=request.prepare_threshold) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        heads, newest, exported_ranges = _read_scope(connection, request)
        seals = SealFinder(connection, newest)
        chain_ranges = [_chain_range(exported, heads, seals) for exported in exported_ranges]
        progress.begin(sum(each.end.seq - each.start.seq for each in chain_ranges))
        with (
            atomic_file(request.output, replace=request.replace) as draft,
            open_writer(draft, request.format) as write,
        ):
            export = _ExportWriter(connection, request, write)
            export.header(exported_ranges[0].tenant_id, request.exported_at)
            for seal in seals.used_seals():
                export.put(r.SealRecord.of(seal))
                export.report.seals += 1
            for chain_range in chain_ranges:
                export.lane(chain_range, progress)
            export.finish()
    report = export.report
    report.rested_s = export.pace.rested_s
    report.size_bytes = request.output.stat().st_size
    report.seconds = time.monotonic() - began_s
    return report


def _read_scope(connection: Connection, request: Request) -> tuple[list[Head], Seal | None, list[_ExportedRange]]:
    """The heads up to which to export, the newest seal, and the range to export of each lane, in one snapshot."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        heads = [Head(*row) for row in connection.execute(_HEADS, binary=True).fetchall()]
        with connection.cursor(row_factory=class_row(Seal), binary=True) as cursor:
            newest = cursor.execute(_LAST_SEAL).fetchone()
        if request.sealed_only:
            if newest is None:
                raise NoSeal
            heads = [require_well_formed(newest).head(lane) for lane in range(len(heads))]
        exported_ranges = _exported_ranges(connection, request, heads)
    connection.isolation_level = None
    if not exported_ranges:
        whose = f"tenant {request.tenant_id}" if request.instance_id is None else f"instance {request.instance_id}"
        raise NotInLog(f"The log has no events of {whose}{' that are sealed' if request.sealed_only else ''}")
    return heads, newest, exported_ranges


def _exported_ranges(connection: Connection, request: Request, heads: list[Head]) -> list[_ExportedRange]:
    if request.instance_id is None:
        parameters: dict[str, Any] = {"tenant": request.tenant_id, "heads": [head.seq for head in heads]}
        return [_ExportedRange(*row) for row in connection.execute(_RANGES_OF_TENANT, parameters)]
    lane = lane_of(request.instance_id)
    parameters = {"lane": lane, "stream": request.instance_id, "upto": heads[lane].seq}
    return [_ExportedRange(*row) for row in connection.execute(_RANGE_OF_INSTANCE, parameters)]


def _chain_range(exported: _ExportedRange, heads: list[Head], seals: SealFinder) -> _ChainRange:
    """The part of a lane from the last seal before the first event to the first seal that covers the last event.

    Where there is no such seal, it begins at the lane's beginning, or ends at its head.
    """
    before = seals.last_before(exported.lane, exported.first)
    covering = seals.first_covering(exported.lane, exported.last)
    start = None if before is None else before.head(exported.lane)
    at_beginning = start is None or start.seq == 0
    return _ChainRange(
        exported=exported,
        start=Head(0, GENESIS) if start is None or at_beginning else start,
        seal_number=0 if before is None or at_beginning else before.number,
        end=heads[exported.lane] if covering is None else covering.head(exported.lane),
        sealed_head=seals.sealed_head(exported.lane),
    )


class _ExportWriter:
    """Writes the records of the file, and counts them."""

    def __init__(self, connection: Connection, request: Request, write: WriteRecord) -> None:
        self.report = ExportReport(output=str(request.output), instance_id=request.instance_id)
        self.pace = Pace(full_speed=request.full_speed)
        self._connection = connection
        self._key = request.key
        self._write = write
        self._fingerprint = r.Fingerprint()

    def put(self, record: r.AnyRecord) -> None:
        self._write(record, self._fingerprint.add(record))

    def header(self, tenant_id: str, exported_at: datetime) -> None:
        self.report.tenant_id = tenant_id
        self.put(
            r.Header(
                format=r.FORMAT,
                format_version=r.FORMAT_VERSION,
                made_by=version("hydracore"),
                exported_at=exported_at,
                tenant_id=tenant_id,
                instance_id=self.report.instance_id,
            )
        )

    def lane(self, chain_range: _ChainRange, progress: Progress) -> None:
        """Write the records of one lane, window by window."""
        lane, (after, link) = chain_range.exported.lane, chain_range.start
        self.put(r.LaneRecord(lane=lane, after=after, link=link, number=chain_range.seal_number))
        streams: set[UUID] = set()
        while after < chain_range.end.seq:
            upto = min(after + WINDOW, chain_range.end.seq)
            self._check_reached(lane, upto)
            for record in self._window(chain_range.exported, after, upto):
                self.put(record)
                if isinstance(record, r.EventRecord):
                    streams.add(record.stream_id)
                    self.report.unsealed += record.seq > chain_range.sealed_head
            progress.advance(upto - after)
            self.pace.rest(self._connection)
            after = upto
        self.put(r.LaneEndRecord(lane=lane, seq=chain_range.end.seq, link=chain_range.end.link))
        self.report.streams += len(streams)
        self.report.lanes += 1

    def _check_reached(self, lane: int, upto: int) -> None:
        """Raise `LogCorrupted` where the commands do not reach `upto`.

        A forged head may leave a gap as large as the range of numbers: reading it window by window would never end.
        """
        row = self._connection.execute(_LAST_COMMAND, {"lane": lane, "upto": upto}, binary=True).fetchone()
        last = 0 if row is None else row[0]
        if last < upto:
            raise LogCorrupted(lane, last + 1, f"the previous command ends before this, and none begins up to {upto}")

    def _window(self, exported: _ExportedRange, after: int, upto: int) -> Iterator[r.AnyRecord]:
        """The commands that begin in the window: exported ones with their events, and the steps of the others."""
        parameters: dict[str, Any] = {
            "lane": exported.lane,
            "after": after,
            "upto": upto,
            "tenant": exported.tenant_id,
            "stream": self.report.instance_id,
            "steps_max": r.STEPS_MAX,
        }
        others: defaultdict[int, list[r.StepsRecord]] = defaultdict(list)
        rows = self._connection.execute(_STEPS, parameters, binary=True, prepare=True)
        for preceding_seq, count, steps, link, bad_seq in rows:
            if bad_seq is not None:
                raise LogCorrupted(
                    exported.lane, bad_seq, "it has no digest, or was recorded at a time that is out of range"
                )
            others[preceding_seq].append(r.StepsRecord(lane=exported.lane, count=count, steps=steps, link=link))
            self.report.steps += count
        with self._connection.cursor(row_factory=class_row(r.CommandRecord), binary=True) as cursor:
            commands = cursor.execute(_COMMANDS, parameters, prepare=True).fetchall()
        for command in commands:
            require_time(exported.lane, command.first_seq, command.recorded_at)
        self.report.commands += len(commands)
        yield from others[after]
        events = self._events(exported.lane, {each.first_seq + n for each in commands for n in range(each.event_count)})
        event = next(events, None)
        for command in commands:
            yield command
            last = command.first_seq + command.event_count - 1
            while event is not None and event.seq <= last:
                yield event
                event = next(events, None)
            yield from others[command.first_seq]

    def _events(self, lane: int, numbers: set[int]) -> Iterator[r.EventRecord]:
        """The events with these numbers, as far as they exist. They are read a page at a time."""
        seqs = sorted(numbers)
        while seqs:
            parameters = {"lane": lane, "seqs": seqs, "bytes": pages.PAGE_BYTES}
            with self._connection.cursor(row_factory=class_row(r.EventRecord), binary=True) as cursor:
                page = cursor.execute(_EVENTS, parameters, prepare=True).fetchall()
            for event in page:
                require_time(lane, event.seq, event.recorded_at)
            self.report.events += len(page)
            yield from page
            seqs = seqs[bisect_right(seqs, page[-1].seq) :] if page else []

    def finish(self) -> None:
        """The end, signed where there is a key."""
        digest = self._fingerprint.digest
        public_key = signature = None
        if self._key:
            key = Ed25519PrivateKey.from_private_bytes(self._key)
            public_key = key.public_key().public_bytes_raw()
            signature = key.sign(r.EndRecord.statement(digest))
        self.report.signed = signature is not None
        self.put(
            r.EndRecord(
                events=self.report.events,
                commands=self.report.commands,
                streams=self.report.streams,
                digest=digest,
                public_key=public_key,
                signature=signature,
            )
        )
