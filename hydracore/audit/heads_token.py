"""Encodes the heads of all lanes as a short text.

A client that continues with this text reads the same part of the log as before, whatever was appended since.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence

from events.ids import LANES, SEQ_MAX
from hydracore import base64url

#: LEB128: each byte has seven bits of a number, the lowest first, and one bit that says whether more bytes follow.
_BITS = 7
_MORE = 1 << _BITS


def encode_heads(heads: Sequence[int]) -> str:
    """The heads as letters, digits, `-` and `_`: about three characters per lane."""
    assert len(heads) == LANES, "a head for each lane"
    return base64url.encode(b"".join(map(_encode_number, heads)))


def decode_heads(text: str) -> list[int]:
    """The heads, by lane. Raises `ValueError` where the text is none that `encode_heads` returns."""
    try:
        heads = list(_decode_numbers(base64url.decode(text)))
    except binascii.Error:
        heads = []
    if len(heads) != LANES or max(heads) > SEQ_MAX:
        raise ValueError(text)
    return heads


def _encode_number(number: int) -> bytes:
    parts = bytearray()
    while number >= _MORE:
        parts.append(number % _MORE + _MORE)
        number >>= _BITS
    return bytes((*parts, number))


def _decode_numbers(text: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in text:
        number += byte % _MORE << shift
        shift += _BITS
        if byte < _MORE:
            yield number
            number = shift = 0
