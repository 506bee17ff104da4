"""Writes the records of an export (`export_records`), lane by lane, and counts them.

A lane is read window by window, each in short statements, and without a snapshot: what is exported never changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import Connection
from psycopg.rows import class_row

from events import pages
from events.errors import LogCorrupted
from events.pacing import Pace
from events.seal import Head
from events.sql import Statements
from hydracore.audit import export_records as r
from hydracore.audit.export_files import WriteRecord
from hydracore.audit.timestamps import require_time
from hydracore.audit.verifying import Progress

_SQL = Statements("hydracore.audit", "exporting.sql")
_COMMANDS = _SQL["commands"]
_EVENTS = pages.insert_weight(_SQL["events"])
_LAST_COMMAND = _SQL["last_command"]
_STEPS = _SQL["steps"]

#: The numbers of a lane that are read at a time.
WINDOW: Final = 5_000


class ExportReport(msgspec.Struct, kw_only=True):
    """What the file holds. `steps`: of commands outside the scope of the export.

    `unsealed`: events that no seal of the database covers yet.
    """

    output: str
    tenant_id: str
    instance_id: UUID | None
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


class ExportedRange(NamedTuple):
    """The numbers of the first and the last exported event of a lane."""

    lane: int
    first: int
    last: int
    tenant_id: str


class ChainRange(NamedTuple):
    """The part of a lane whose chain is in the file.

    `seal_number`: the seal at whose head it begins; 0: at the lane's beginning. `sealed_head`: the lane's
    head in the newest seal.
    """

    exported: ExportedRange
    start: Head
    seal_number: int
    end: Head
    sealed_head: int


class ExportWriter:
    """`key`: the seed of the key that signs the file; empty: it is not signed."""

    def __init__(
        self, connection: Connection, write: WriteRecord, *, report: ExportReport, pace: Pace, key: bytes
    ) -> None:
        self._connection = connection
        self._write = write
        self._report = report
        self._pace = pace
        self._key = key
        self._fingerprint = r.Fingerprint()

    def put(self, record: r.AnyRecord) -> None:
        self._write(record, self._fingerprint.add(record))

    def header(self, exported_at: datetime) -> None:
        self.put(
            r.Header(
                format=r.FORMAT,
                format_version=r.FORMAT_VERSION,
                made_by=version("hydracore"),
                exported_at=exported_at,
                tenant_id=self._report.tenant_id,
                instance_id=self._report.instance_id,
            )
        )

    def lane(self, chain_range: ChainRange, progress: Progress) -> None:
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
                    self._report.unsealed += record.seq > chain_range.sealed_head
            progress.advance(upto - after)
            self._pace.rest(self._connection)
            after = upto
        self.put(r.LaneEndRecord(lane=lane, seq=chain_range.end.seq, link=chain_range.end.link))
        self._report.streams += len(streams)
        self._report.lanes += 1

    def _check_reached(self, lane: int, upto: int) -> None:
        """Raise `LogCorrupted` where the commands do not reach `upto`.

        A forged head may leave a gap as large as the range of numbers: reading it window by window would never end.
        """
        row = self._connection.execute(_LAST_COMMAND, {"lane": lane, "upto": upto}, binary=True).fetchone()
        last = 0 if row is None else row[0]
        if last < upto:
            raise LogCorrupted(lane, last + 1, f"the previous command ends before this, and none begins up to {upto}")

    def _window(self, exported: ExportedRange, after: int, upto: int) -> Iterator[r.AnyRecord]:
        """The commands that begin in the window: exported ones with their events, and the steps of the others."""
        parameters: dict[str, Any] = {
            "lane": exported.lane,
            "after": after,
            "upto": upto,
            "tenant": exported.tenant_id,
            "stream": self._report.instance_id,
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
            self._report.steps += count
        with self._connection.cursor(row_factory=class_row(r.CommandRecord), binary=True) as cursor:
            commands = cursor.execute(_COMMANDS, parameters, prepare=True).fetchall()
        for command in commands:
            require_time(exported.lane, command.first_seq, command.recorded_at)
        self._report.commands += len(commands)
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
            self._report.events += len(page)
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
        self._report.signed = signature is not None
        self.put(
            r.EndRecord(
                events=self._report.events,
                commands=self._report.commands,
                streams=self._report.streams,
                digest=digest,
                public_key=public_key,
                signature=signature,
            )
        )
