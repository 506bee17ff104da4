"""Merkle roots as in RFC 6962, section 2.1: one hash over many leaves, where no leaf can pass for an inner node."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

_LEAF = b"\x00"
_NODE = b"\x01"


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over `leaves` in their order. There is at least one."""
    assert leaves, "a tree has leaves"
    if len(leaves) == 1:
        return sha256(_LEAF + leaves[0]).digest()
    # The largest power of two that is smaller than the number of leaves.
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(_NODE + root_of(leaves[:half]) + root_of(leaves[half:])).digest()
