"""Ids and lanes that are derived instead of random, so that a retry gets the same ones."""

from __future__ import annotations

import uuid
from uuid import UUID

#: The number of ordered partitions of the log. Fixed for ever: it decides which lane each instance is in.
LANES = 64

#: The highest version of a stream, and the highest number in a lane.
VERSION_MAX = 2**31 - 1
SEQ_MAX = 2**63 - 1

#: The namespace of all derived ids (RFC 9562 version 5), generated once for HydraCore.
NAMESPACE = UUID("6f1c1f4e-0f3b-5c55-9d0e-6d9a0a3f7c21")


def instance_id_for(*, tenant_id: str, customer_id: str, idempotency_key: str) -> UUID:
    """The id of the instance that a request of this customer with this key creates, the first time and on every retry."""
    return uuid.uuid5(NAMESPACE, length_prefixed(tenant_id, customer_id, idempotency_key))


def length_prefixed(*parts: str) -> str:
    """The parts as one text, each after its length in characters, so that no two different lists of parts give the same text.

    Ids, secrets and the additional data of ciphertexts are made from it, so it must never change.
    """
    return "".join(f"{len(part)}:{part}" for part in parts)


def command_id_for(instance_id: UUID, what: str) -> UUID:
    """The id of the command that does `what` to this instance. A repeated command has the same id."""
    return uuid.uuid5(instance_id, what)


def lane_of(stream_id: UUID) -> int:
    """The lane of a stream: its id's last six bits (a version 5 UUID is itself a hash)."""
    return stream_id.int & (LANES - 1)


def lane_of_bytes(stream_id: bytes) -> int:
    """As `lane_of`, for the bytes of an id. It is faster."""
    return stream_id[15] & (LANES - 1)
