"""Ids and lanes: everything that is derived, never drawn, so that a retry meets its first self."""

from __future__ import annotations

import uuid
from uuid import UUID

#: How many ordered partitions the log has. Fixed for ever: an instance's lane is part of its address.
LANES = 64

#: The highest version of a stream, and the highest number in a lane, that the log can count to.
VERSION_MAX = 2**31 - 1
SEQ_MAX = 2**63 - 1

#: Namespace of every derived id (RFC 9562 version 5); drawn once for HydraCore.
NAMESPACE = UUID("6f1c1f4e-0f3b-5c55-9d0e-6d9a0a3f7c21")


def instance_id_for(*, tenant_id: str, customer_id: str, idempotency_key: str) -> UUID:
    """The instance that this customer's request with this key stands for, today and on every retry."""
    return uuid.uuid5(NAMESPACE, length_prefixed(tenant_id, customer_id, idempotency_key))


def length_prefixed(*parts: str) -> str:
    """The parts as one text, each behind its length in characters: no two different lists of parts give the same.

    Ids, secrets and what ciphertext is bound to are made of it, so it gives the same for ever.
    """
    return "".join(f"{len(part)}:{part}" for part in parts)


def command_id_for(instance_id: UUID, *parts: str | int) -> UUID:
    """The id of the one command that does this thing to this instance; a repeat finds the stored result."""
    return uuid.uuid5(instance_id, "/".join(str(part) for part in parts))


def lane_of(stream_id: UUID) -> int:
    """The lane of a stream: its id's last six bits (a version 5 UUID is itself a hash)."""
    return stream_id.int & (LANES - 1)


def lane_of_bytes(stream_id: bytes) -> int:
    """The same for the bytes of an id, for those who have many of them."""
    return stream_id[15] & (LANES - 1)
