"""Exports from the frozen corpus, and a forger that edits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from events.digest import chain_link, event_digest
from events.row_digests import command_row_digest
from events.seal import Head, make_seal
from events.times import to_microseconds
from hydracore.audit import export_records as r
from hydracore.audit.export_check import Report, Request, verify_export
from hydracore.audit.export_files import read_records
from hydracore.audit.verifying import Progress
from tests.sealed_log import SEAL_KEY

CORPUS = Path(__file__).parent / "corpus"

#: The export of one instance, not signed: numbers 13, 15 to 17 (one command) and 19 of lane 6, between seals 2 (after 12)
#: and 3 (at the end). Numbers 14 and 18 are of other instances.
INSTANCE = CORPUS / "export-v1-instance.jsonl"

#: The export of its tenant, signed: all 19 numbers of the lane, covered by the last seal.
TENANT = CORPUS / "export-v1-tenant.jsonl"
TENANT_PARQUET = CORPUS / "export-v1-tenant.parquet"

KEY = Ed25519PrivateKey.from_private_bytes(SEAL_KEY)
PUBLIC_KEY = KEY.public_key().public_bytes_raw()


def verify_file(path: Path, *, public_key: bytes | None = PUBLIC_KEY, allow_unsigned: bool = True) -> Report:
    return verify_export(Request(path=path, public_key=public_key, allow_unsigned=allow_unsigned), Progress())


def export_findings(path: Path) -> list[str]:
    """The findings, such as `event_edited 13`."""
    return [f"{each.kind} {each.seq or '-'}" for each in verify_file(path).findings]


class Forger:
    """Edits the records of a file, and recomputes the digests and links that a test asks for."""

    def __init__(self, path: Path) -> None:
        self.records: list[Any] = [placed.record for placed in read_records(path)]

    def at(self, kind: type[r.Record], seq: int) -> int:
        """The position in the file of the command that begins with this number, or of the event with this number."""
        (at,) = [
            at
            for at, each in enumerate(self.records)
            if isinstance(each, kind) and seq in {getattr(each, "seq", None), getattr(each, "first_seq", None)}
        ]
        return at

    def change(self, at: int, **fields: Any) -> None:
        self.records[at] = replace(self.records[at], **fields)

    def rename(self, seq: int, *, new: str = "forged") -> None:
        """Put another name into an event's payload."""
        at = self.at(r.EventRecord, seq)
        self.change(at, payload=self.records[at].payload.replace("last", new).replace("hc-new", new))

    def redo_event(self, seq: int) -> None:
        at = self.at(r.EventRecord, seq)
        event = self.records[at]
        digest = event_digest(
            stream_id=event.stream_id,
            version=event.version,
            tag=event.type,
            schema_version=event.schema_version,
            payload=event.payload.encode(),
        )
        self.change(at, digest=digest)

    def redo_command(self, seq: int) -> None:
        at = self.at(r.CommandRecord, seq)
        command = self.records[at]
        events = self.records[at + 1 : at + 1 + command.event_count]
        self.change(at, digest=command_row_digest(command, [event.digest for event in events]))

    def redo_links(self) -> None:
        """Recompute all links, and the end of the lane."""
        link = b""
        for at, each in enumerate(self.records):
            match each:
                case r.LaneRecord():
                    link = each.link
                case r.CommandRecord():
                    us = to_microseconds(each.recorded_at)
                    link = chain_link(previous=link, command=each.digest, first_seq=each.first_seq, recorded_us=us)
                    self.change(at, link=link)
                case r.StepsRecord():
                    for seq, us, digest in each:
                        link = chain_link(previous=link, command=digest, first_seq=seq, recorded_us=us)
                    self.change(at, link=link)
                case r.LaneEndRecord():
                    self.change(at, link=link)
                case _:
                    pass

    def hide(self, seq: int) -> None:
        """Replace an exported command with a step, as if it were outside the scope."""
        at = self.at(r.CommandRecord, seq)
        command = self.records[at]
        step = b"".join((seq.to_bytes(8), to_microseconds(command.recorded_at).to_bytes(8), command.digest))
        hidden = r.StepsRecord(lane=command.lane, count=1, steps=step, link=command.link)
        self.records[at : at + 1 + command.event_count] = [hidden]

    def seal_anew(self, key: Ed25519PrivateKey) -> None:
        """Replace the last seal with one over the present end of the lane."""
        at = max(at for at, each in enumerate(self.records) if isinstance(each, r.SealRecord))
        seal, (end,) = self.records[at].seal, [each for each in self.records if isinstance(each, r.LaneEndRecord)]
        heads = [Head(end.seq, end.link) if lane == end.lane else seal.head(lane) for lane in range(64)]
        made = make_seal(heads, previous=None, sealed_at=seal.sealed_at, key=key)
        made = replace(made, number=seal.number, previous=seal.previous, signature=b"")
        self.records[at] = r.SealRecord.of(replace(made, signature=key.sign(made.statement)))

    def saved(self, folder: Path, *, fit: bool = True, key: Ed25519PrivateKey | None = None) -> Path:
        """Write the file. `fit`: with counts and digest of its present records. `key`: signs it."""
        if fit and isinstance(self.records[-1], r.EndRecord):
            self._redo_end(key)
        path = folder / "forged.jsonl"
        fingerprint = r.Fingerprint()
        path.write_bytes(b"".join(fingerprint.add(each) for each in self.records))
        return path

    def _redo_end(self, key: Ed25519PrivateKey | None) -> None:
        fingerprint = r.Fingerprint()
        for each in self.records[:-1]:
            fingerprint.add(each)
        events = [each for each in self.records if isinstance(each, r.EventRecord)]
        digest = fingerprint.digest
        self.records[-1] = r.EndRecord(
            events=len(events),
            commands=sum(isinstance(each, r.CommandRecord) for each in self.records),
            streams=len({each.stream_id for each in events}),
            digest=digest,
            public_key=None if key is None else key.public_key().public_bytes_raw(),
            signature=None if key is None else key.sign(r.EndRecord.statement(digest)),
        )
