"""The records of an export, the same in every file format.

    header
    seal ...            whose heads the lanes below begin at, pass, or end at
    per lane, in order:
        lane            where the chain begins: at the lane's beginning, or at the head that a seal signs
        command         an exported command, complete, followed by its `event`s, complete
        steps           other commands in between: only their digest, number and time, which the links need
        lane_end        where the chain ends
    end                 the counts, and the digest of all records before it

With the steps of other commands the chain runs without a gap from the lane's beginning (or a seal) to a
head that a seal signs. So with the seals' public key it can be proven of each event that the sealed log
holds it in this form. What the other commands did is not in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta

from events.ids import LANES, SEQ_MAX
from events.seal import Seal

#: Rises when a record gets another meaning. Every version that was ever written stays readable (`tests/corpus/`).
FORMAT_VERSION: Final = 1

#: The most steps of one record.
STEPS_MAX: Final = 1_000

#: What an untrusted file may have: numbers in the log's range, and times with an offset.
Lane = Annotated[int, Meta(ge=0, lt=LANES)]
Number = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Time = Annotated[datetime, Meta(tz=True)]

_STEP: Final = struct.Struct(">qq32s")


class Record(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True, forbid_unknown_fields=True
):
    """The base of all records."""


class Header(Record, frozen=True, kw_only=True, tag="header", forbid_unknown_fields=False):
    """`instance_id`: null where the whole tenant was exported. `made_by`: the version of HydraCore.

    Unknown fields are ignored here, so that the header of a later version can be read and reported as such.
    """

    format: str
    format_version: Number
    made_by: str
    exported_at: Time
    tenant_id: str
    instance_id: UUID | None = None


class SealRecord(Record, frozen=True, kw_only=True, tag="seal"):
    """A seal as `events.seal` has it."""

    number: Number
    sealed_at: Time
    heads: list[Number]
    links: bytes
    root: bytes
    previous: bytes
    public_key: bytes
    signature: bytes

    @classmethod
    def of(cls, seal: Seal) -> SealRecord:
        return cls(**msgspec.structs.asdict(seal))

    @property
    def seal(self) -> Seal:
        return Seal(**msgspec.structs.asdict(self))


class LaneRecord(Record, frozen=True, kw_only=True, tag="lane"):
    """The chain begins behind `after`, with `link`: at the head in seal `number`, or, if 0, at the lane's start."""

    lane: Lane
    after: Number
    link: bytes
    number: Number = 0


class CommandRecord(Record, frozen=True, kw_only=True, tag="command"):
    """A row of `command`. `result` is the exact stored text."""

    lane: Lane
    first_seq: Number
    event_count: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    command_id: UUID
    stream_id: UUID
    tenant_id: str
    name: str
    actor: str
    correlation_id: UUID
    causation_id: UUID | None = None
    request_hash: bytes | None = None
    result: str | None = None
    recorded_at: Time
    digest: bytes
    link: bytes


class EventRecord(Record, frozen=True, kw_only=True, tag="event"):
    """A row of `event`. `payload` is the exact stored text, as a string, so that no reader reformats its JSON."""

    lane: Lane
    seq: Number
    stream_id: UUID
    version: Number
    tenant_id: str
    type: str
    schema_version: Number
    payload: str
    digest: bytes
    command_id: UUID
    recorded_at: Time


class StepsRecord(Record, frozen=True, kw_only=True, tag="steps"):
    """Other commands, 48 bytes each: first number and time (microseconds since 1970), 8 bytes each, and digest.

    `link`: that of the last command.
    """

    lane: Lane
    count: Number
    steps: Annotated[bytes, Meta(max_length=STEPS_MAX * _STEP.size)]
    link: bytes

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Raises `struct.error` where the bytes are no whole steps."""
        return _STEP.iter_unpack(self.steps)


class LaneEndRecord(Record, frozen=True, kw_only=True, tag="lane_end"):
    """The chain ends with number `seq`, and with `link`."""

    lane: Lane
    seq: Number
    link: bytes


class EndRecord(Record, frozen=True, kw_only=True, tag="end"):
    """`digest`: of all records before it. Signed (Ed25519) where the exporter had the key that signs seals."""

    events: Number
    commands: Number
    streams: Number
    digest: bytes
    public_key: bytes | None = None
    signature: bytes | None = None

    @staticmethod
    def statement(digest: bytes) -> bytes:
        """The bytes that are signed."""
        return b"hydracore/export/1" + digest


AnyRecord = Header | SealRecord | LaneRecord | CommandRecord | EventRecord | StepsRecord | LaneEndRecord | EndRecord
"""The closed union of records."""

_encoder: Final = msgspec.json.Encoder()

#: `Header.format` of every export.
FORMAT: Final = "hydracore-export"

#: What is wrong with a record that other readers may read differently, such as one with a field twice.
NOT_CANONICAL: Final = "it is not encoded as an export encodes it"


def is_newer_format(record: AnyRecord) -> bool:
    """Whether it is the header of a file that only a later version can read."""
    return isinstance(record, Header) and record.format_version > FORMAT_VERSION


class NumberedRecord(NamedTuple):
    """A record and its number: the line of a JSON Lines file, or the row of a Parquet file, from 1."""

    number: int
    record: AnyRecord


class Fingerprint:
    """The digest of all records so far, over their JSON: the same whatever the file's format is."""

    def __init__(self) -> None:
        self._sha256 = sha256()

    def add(self, record: AnyRecord) -> bytes:
        """Add a record to the digest. Returns its line."""
        line = _encoder.encode(record) + b"\n"
        self._sha256.update(line)
        return line

    @property
    def digest(self) -> bytes:
        return self._sha256.digest()
