"""Seals: signed statements of the head of each lane, that is its last number and its last link.

A lane's links pin everything before them, and a seal pins the links: a lane that was cut off, or rewritten with links that fit each
other, does not fit its seals. Each seal has the digest of the seal before, so none can be removed either. The signature (Ed25519)
covers a short statement; the Merkle root in it stands for all heads and links.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from events.digest import GENESIS
from events.errors import LogCorrupted
from events.ids import LANES, SEQ_MAX
from events.merkle import root_of
from events.times import to_microseconds

#: `previous` of the first seal.
NO_PREVIOUS_SEAL = bytes(32)

_PURPOSE = b"hydracore/seal/1"
_LINK_BYTES = len(GENESIS)


class Head(NamedTuple):
    """The head of a lane: the number of its last event, and its last link."""

    seq: int
    link: bytes


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """`heads` and `links` (32 bytes each) are by lane; `previous` is the digest of the seal before."""

    number: int
    sealed_at: datetime
    heads: list[int]
    links: bytes
    root: bytes
    previous: bytes
    public_key: bytes
    signature: bytes

    def head(self, lane: int) -> Head:
        return Head(self.heads[lane], self.links[lane * _LINK_BYTES : (lane + 1) * _LINK_BYTES])

    @property
    def statement(self) -> bytes:
        """The bytes that are signed."""
        return b"".join(
            (_PURPOSE, _int8(self.number), _int8(to_microseconds(self.sealed_at)), self.previous, self.root)
        )

    @property
    def is_malformed(self) -> bool:
        """Whether a field has a value that no seal can have, such as null, a time without a zone, or a number out of range.

        That is possible in a file, and in a table whose constraints were removed.
        """
        try:
            msgspec.convert(msgspec.structs.asdict(self), _SealSchema, builtin_types=(bytes, datetime))
        except msgspec.ValidationError:
            return True
        return False

    @property
    def has_all_lanes(self) -> bool:
        return len(self.heads) == LANES and len(self.links) == LANES * _LINK_BYTES

    @property
    def digest(self) -> bytes:
        """What the next seal names as its predecessor."""
        return sha256(self.statement).digest()


def require_well_formed(seal: Seal) -> Seal:
    """Return the seal, so that the caller can build on it. Raises `LogCorrupted` if it is malformed or lacks lanes."""
    if seal.is_malformed or not seal.has_all_lanes:
        raise LogCorrupted(0, 0, f"seal {seal.number} is malformed")
    return seal


class _SealSchema(msgspec.Struct):
    """The types of a seal's fields, without any check of their contents. Numbers fit a `bigint`."""

    number: Annotated[int, Meta(ge=-(2**63), le=SEQ_MAX)]
    sealed_at: Annotated[datetime, Meta(tz=True)]
    heads: list[Annotated[int, Meta(ge=-(2**63), le=SEQ_MAX)]]
    links: bytes
    root: bytes
    previous: bytes
    public_key: bytes
    signature: bytes


def make_seal(heads: Sequence[Head], *, previous: Seal | None, sealed_at: datetime, key: Ed25519PrivateKey) -> Seal:
    """The seal after `previous` over the heads of all lanes."""
    assert len(heads) == LANES, "a seal has every lane"
    unsigned = Seal(
        number=1 if previous is None else previous.number + 1,
        sealed_at=sealed_at,
        heads=[head.seq for head in heads],
        links=b"".join(head.link for head in heads),
        root=_root(heads),
        previous=NO_PREVIOUS_SEAL if previous is None else previous.digest,
        public_key=key.public_key().public_bytes_raw(),
        signature=b"",
    )
    return msgspec.structs.replace(unsigned, signature=key.sign(unsigned.statement))


def find_flaws(
    seal: Seal, *, previous: Seal | None, public_key: bytes | None, former_keys: tuple[bytes, ...] = ()
) -> Iterator[str]:
    """What is wrong with a seal that follows `previous`, in words. `previous` is None for the first seal that is looked at.

    `public_key`: the key that must have signed it. `former_keys`, oldest first, are accepted too, each until the first seal of a later
    key. With None any key is accepted, so a seal only proves that it was not changed without being signed again.
    """
    if seal.is_malformed:
        yield "it is malformed"
        return
    # While a replacement is prepared, the settings may list the present key among the former ones.
    keys = () if public_key is None else (*(key for key in former_keys if key != public_key), public_key)
    if keys and seal.public_key not in keys:
        yield "it was signed with another key"
    elif keys and previous is not None and previous.public_key in keys[keys.index(seal.public_key) + 1 :]:
        yield "it was signed with a key that had been replaced by then"
    if not _is_signed(seal):
        yield "its signature is invalid"
    if not seal.has_all_lanes:
        yield "it does not cover every lane"
        return
    if _root([seal.head(lane) for lane in range(LANES)]) != seal.root:
        yield "its heads and links differ from those that were signed"
    if previous is None or previous.is_malformed or not previous.has_all_lanes:
        if seal.number == 1 and seal.previous != NO_PREVIOUS_SEAL:
            yield "it is the first seal but names a predecessor"
        return
    if seal.number != previous.number + 1:
        yield f"seal {previous.number + 1} is missing before it"
    elif seal.previous != previous.digest:
        yield "it names a different predecessor than the seal before it"
    if seal.sealed_at < previous.sealed_at:
        yield "its time is earlier than that of the seal before it"
    if any(now < before for now, before in zip(seal.heads, previous.heads, strict=True)):
        yield "a lane is shorter in it than in the seal before it"


def _root(heads: Sequence[Head]) -> bytes:
    return root_of([lane.to_bytes(2) + _int8(head.seq) + head.link for lane, head in enumerate(heads)])


def _is_signed(seal: Seal) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(seal.public_key).verify(seal.signature, seal.statement)
    except (InvalidSignature, ValueError):
        # `ValueError`: the key has a wrong length.
        return False
    return True


def _int8(value: int) -> bytes:
    """As PostgreSQL's int8: signed, because a forged value may be negative."""
    return value.to_bytes(8, signed=True)
