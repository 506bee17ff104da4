"""The hash chain of a lane.

    event digest    SHA-256 over the event's identity and its stored bytes
    command digest  SHA-256 over everything its row says, and its events' digests in order
    link            SHA-256(previous link, command digest, first number, recorded time): computed in the append, under
                    the lane's lock, because only there the previous link and the numbers are known

Every field is length-prefixed, so no two different rows give the same bytes. The links make each lane a hash chain as
in Haber & Stornetta, "How to time-stamp a digital document" (1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from uuid import UUID

#: The link before a lane's first command.
GENESIS = bytes(32)


def _digest(parts: Iterable[bytes]) -> bytes:
    joined = bytearray()
    for part in parts:
        joined += len(part).to_bytes(8)
        joined += part
    return sha256(joined).digest()


def event_digest(*, stream_id: UUID, version: int, tag: str, schema_version: int, payload: bytes) -> bytes:
    """The 32-byte digest of one event: of its position in its stream, its type, and its exact bytes."""
    return _digest((stream_id.bytes, version.to_bytes(8), tag.encode(), schema_version.to_bytes(2), payload))


def command_digest(
    *,
    command_id: UUID,
    stream_id: UUID,
    tenant_id: str,
    name: str,
    actor: str,
    correlation_id: UUID,
    causation_id: UUID | None,
    request_hash: bytes | None,
    result: bytes | None,
    event_digests: Sequence[bytes],
) -> bytes:
    """The 32-byte digest of one command: of its ids, its actor, its result, and the events that it caused."""
    return _digest(
        (
            command_id.bytes,
            stream_id.bytes,
            tenant_id.encode(),
            name.encode(),
            actor.encode(),
            correlation_id.bytes,
            _optional(None if causation_id is None else causation_id.bytes),
            _optional(request_hash),
            _optional(result),
            *event_digests,
        )
    )


def _optional(part: bytes | None) -> bytes:
    """`part` with a prefix, so that None and an empty part differ."""
    return b"\0" if part is None else b"\1" + part


def chain_link(*, previous: bytes, command: bytes, first_seq: int, recorded_us: int) -> bytes:
    """The lane's next link. It hashes the same bytes as `append_commands` in schema.sql."""
    return sha256(previous + command + first_seq.to_bytes(8) + recorded_us.to_bytes(8)).digest()
