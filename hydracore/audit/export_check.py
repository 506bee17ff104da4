"""`audit verify-export`: checks an export with nothing but the file and the public key of the seals.

It proves that each event's bytes, command, actor, cause, number and time are those of the sealed log,
and that no stream lacks a version before its last one. Where the exporter has signed the file, it also
proves that the file was not changed since, and that no stream lacks events at its end.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from datetime import datetime
from pathlib import Path
from typing import Any, assert_never
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from events.digest import GENESIS
from events.ids import LANES
from events.lane_verification import SealPoint
from events.seal import Seal, find_flaws
from events.verification_findings import FINDINGS_MAX, Finding
from hydracore.audit import export_records as r
from hydracore.audit.errors import RecordUnreadable
from hydracore.audit.export_chain import LaneChain
from hydracore.audit.export_files import read_records
from hydracore.audit.seal_file import SealFile
from hydracore.audit.verifying import Progress
from hydracore.wording import plural

#: The number of records between two reports of progress.
PROGRESS_EVERY = 1_000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`public_key`: the only accepted key, with the `former_keys` before it; None accepts any.

    `seals`: the copy of the seals outside the database.

    `allow_unsigned`: whether the export may be unsigned although `public_key` is given. Whoever cuts an
    export off can remove its signature, too, so that this is not the default.
    """

    path: Path
    public_key: bytes | None = None
    former_keys: tuple[bytes, ...] = ()
    seals: SealFile | None = None
    allow_unsigned: bool = False


class Report(msgspec.Struct, kw_only=True):
    """What the file says it is, how much was checked, and what is wrong."""

    path: str
    tenant_id: str = ""
    instance_id: UUID | None = None
    exported_at: datetime | None = None
    events: int = 0
    commands: int = 0
    streams: int = 0
    lanes: int = 0
    steps: int = 0
    seals: int = 0
    signed: bool = False
    findings: list[Finding] = []
    notes: list[str] = []
    seconds: float = 0.0


def verify_export(request: Request, progress: Progress) -> Report:
    """Check an export and report all that is wrong with it. Raises `OSError`, `NotAnExport`, `ParquetMissing` and `ParquetBroken`."""
    began_s = time.monotonic()
    check = _ExportChecker(request)
    number = 0
    try:
        for number, record in read_records(request.path):
            check.take(number, record)
            if number % PROGRESS_EVERY == 0:
                progress.advance(PROGRESS_EVERY)
        check.finish(number)
    except RecordUnreadable as error:
        check.report_damage(error)
    check.report.seconds = time.monotonic() - began_s
    return check.report


class _ExportChecker:
    def __init__(self, request: Request) -> None:
        self.report = Report(path=str(request.path))
        self._key = request.public_key
        self._former_keys = request.former_keys
        self._must_be_signed = request.public_key is not None and not request.allow_unsigned
        self._copies = request.seals
        self._number = 0
        self._fingerprint = r.Fingerprint()
        self._seals: dict[int, Seal] = {}
        self._signers: set[bytes] = set()
        self._chain: LaneChain | None = None
        self._last_lane = -1
        self._is_header_missing = False
        self._ended = False
        #: Whether the file has its end, but no signature there.
        self._is_unsigned = False
        #: The events that no seal covers: lane, first number and count, a row per lane.
        self._unsealed: list[tuple[int, int, int]] = []

    def take(self, number: int, record: r.AnyRecord) -> None:
        """Check the next record."""
        self._number = number
        if number == 1 and not isinstance(record, r.Header):
            self._is_header_missing = True
            self._find("file_edited", "The export has no header: its beginning was cut off")
        if self._ended:
            self._find("file_edited", "There are records after the end of the export")
            return
        match record:
            case r.Header():
                self._header(record)
            case r.SealRecord():
                self._seal(record.seal)
            case r.LaneRecord():
                self._begin_lane(record)
            case r.CommandRecord() | r.EventRecord() | r.StepsRecord() | r.LaneEndRecord():
                self._in_lane(record)
            case r.EndRecord():
                self._end(record)
            case _:
                assert_never(record)
        self._fingerprint.add(record)

    def finish(self, number: int) -> None:
        """Call it after the last record."""
        self._number = number
        if not self._ended:
            self._end_lane(None)
            self._find("file_truncated", "The export has no end: the file was cut off")
        self._report_unproven()

    def report_damage(self, error: RecordUnreadable) -> None:
        """Report that the file cannot be read any further."""
        self._number = error.number
        self._find("record_unreadable", f"{error}; the rest of the file was not checked")

    def _header(self, header: r.Header) -> None:
        if self._number != 1:
            self._find("file_edited", "There is a second header")
        self.report.tenant_id = header.tenant_id
        self.report.instance_id = header.instance_id
        self.report.exported_at = header.exported_at

    def _seal(self, seal: Seal) -> None:
        flaws = list(find_flaws(seal, previous=None, public_key=self._key, former_keys=self._former_keys))
        if self._last_lane >= 0 or next(reversed(self._seals), 0) >= seal.number:
            flaws.append("it is out of order")
        self.report.seals += 1
        self._signers.add(seal.public_key)
        for flaw in flaws:
            self._find("seal_flawed", f"Seal {seal.number}: {flaw}")
        if not flaws:
            self._seals[seal.number] = seal

    def _begin_lane(self, begin: r.LaneRecord) -> None:
        self._end_lane(None)
        if self._last_lane < 0:
            self._compare_with_copies()
        if not self._last_lane < begin.lane < LANES:
            self._find("file_edited", "The lane is out of order", lane=begin.lane)
        self._last_lane = begin.lane
        seal = self._seals.get(begin.number)
        where = (begin.after, begin.link)
        if where != ((0, GENESIS) if begin.number == 0 else None if seal is None else tuple(seal.head(begin.lane))):
            what = (
                f"Its chain does not begin where seal {begin.number} says"
                if begin.number
                else "Its chain does not begin at the beginning of the log"
            )
            self._find("chain_broken", what, lane=begin.lane, seq=begin.after + 1)
        points = [SealPoint(*known.head(begin.lane), known.number) for known in self._seals.values()]
        points = sorted(point for point in points if point.seq > begin.after)
        self._chain = LaneChain(begin, points, self._find, self._is_in_scope)
        self.report.lanes += 1

    def _in_lane(self, record: r.CommandRecord | r.EventRecord | r.StepsRecord | r.LaneEndRecord) -> None:
        chain = self._chain
        if chain is None or record.lane != chain.lane:
            self._find("file_edited", "The record is outside its lane", lane=record.lane)
            return
        match record:
            case r.CommandRecord():
                chain.command(record)
            case r.EventRecord():
                chain.event(record)
            case r.StepsRecord():
                chain.other_commands(record)
            case r.LaneEndRecord():
                self._end_lane(record)

    def _end_lane(self, end: r.LaneEndRecord | None) -> None:
        chain, self._chain = self._chain, None
        if chain is None:
            return
        chain.finish(end)
        self.report.events += chain.events
        self.report.commands += chain.commands
        self.report.steps += chain.steps
        self.report.streams += len(chain.versions)
        if chain.unsealed and not chain.is_broken:
            self._unsealed.append((chain.lane, chain.unsealed_from, chain.unsealed))

    def _end(self, end: r.EndRecord) -> None:
        self._end_lane(None)
        self._ended, self._is_unsigned = True, end.signature is None
        counts = (self.report.events, self.report.commands, self.report.streams)
        if counts != (end.events, end.commands, end.streams) or end.digest != self._fingerprint.digest:
            if not self.report.findings:
                self._find("file_edited", "The records differ from those that were exported")
            return
        if end.signature is None:
            return
        if self._key is not None and end.public_key not in (*self._former_keys, self._key):
            self._find("signature_wrong", "The export was signed with another key")
        elif not _is_signed(end):
            self._find("signature_wrong", "The signature of the export is invalid")
        else:
            self.report.signed = True
            self._signers.add(end.public_key or b"")

    def _is_in_scope(self, command: r.CommandRecord) -> bool:
        if self._is_header_missing:
            return True  # Without the header it is unknown what was exported.
        instance_id = self.report.instance_id
        return command.tenant_id == self.report.tenant_id and instance_id in {None, command.stream_id}

    def _compare_with_copies(self) -> None:
        """Report each seal of the export that the copy does not have in the same form."""
        if self._copies is None:
            return
        left = dict(self._seals)
        for copy in self._copies.read():
            if left.get(copy.number) == copy:
                del left[copy.number]
        for number in left:
            self._find("seal_flawed", f"Seal {number}: it is not in the copy outside the database")
        self.report.notes += self._copies.notes

    def _report_unproven(self) -> None:
        notes = self.report.notes
        if self._key is None:
            keys = sorted({urlsafe_b64encode(key).decode() for key in self._signers})
            signers = f" (the file is signed with {', '.join(keys)})" if keys else ""
            notes.append(
                f"Signatures by any key were accepted: give the expected public key with --public-key{signers}"
            )
        if self._is_unsigned:
            what = "The export is not signed as a whole: later events of its streams, or other streams of the tenant, may be missing"
            if self._must_be_signed:
                self._find("not_signed", what)
            else:
                notes.append(what)
        for lane, first, count in self._unsealed:
            if self.report.signed:
                break
            what = f"Not sealed yet, so not proven: {plural(count, 'event')} from here on"
            if self._key is None:
                notes.append(f"lane {lane}, {first}: {what}")
            else:
                self._find("not_sealed", what, lane=lane, seq=first)

    def _find(self, kind: str, what: str, **place: Any) -> None:
        if len(self.report.findings) < FINDINGS_MAX:
            what = f"{what} (record {self._number})"
            self.report.findings.append(Finding(kind=kind, what=what, **place))


def _is_signed(end: r.EndRecord) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(end.public_key or b"")
        key.verify(end.signature or b"", r.EndRecord.statement(end.digest))
    except (InvalidSignature, ValueError):
        # A `ValueError` is a key of another length.
        return False
    return True
