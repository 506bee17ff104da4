"""The heads of all lanes as a short text.

A client that goes on with it later reads the same part of the log as before.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence

from events.ids import LANES, SEQ_MAX
from hydracore import base64url

#: A byte has seven bits of a number, the lowest first, and says whether more follow (LEB128).
_BITS = 7
_MORE = 1 << _BITS


def cut_text(heads: Sequence[int]) -> str:
    """The heads as letters, digits, `-` and `_`: about three characters per lane."""
    assert len(heads) == LANES, "a head for each lane"
    return base64url.encode(b"".join(map(_bytes_of, heads)))


def read_cut(text: str) -> list[int]:
    """The heads. Raises `ValueError` where the text is not one of `cut_text`."""
    try:
        heads = list(_numbers(base64url.decode(text)))
    except binascii.Error:
        heads = []
    if len(heads) != LANES or max(heads) > SEQ_MAX:
        raise ValueError(text)
    return heads


def _bytes_of(number: int) -> bytes:
    parts = bytearray()
    while number >= _MORE:
        parts.append(number % _MORE + _MORE)
        number >>= _BITS
    return bytes((*parts, number))


def _numbers(text: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in text:
        number += byte % _MORE << shift
        shift += _BITS
        if byte < _MORE:
            yield number
            number = shift = 0
