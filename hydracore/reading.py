"""JSON that somebody else made: what reading it may raise, and whether it is an object."""

from __future__ import annotations

import codecs
from typing import Final

import msgspec

#: What `msgspec` raises at JSON that is none, not of the shape agreed on, or nested without end.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: How much is looked at at once: as text, a character may take four times its bytes.
_PIECE_BYTES: Final = 256 * 1024


class _Anything(msgspec.Struct):
    """An object, with whatever names."""


def require_object(content: bytes) -> None:
    """Raises one of `UNREADABLE` where `content` is no JSON object. Nothing is built of what is in it: objects in memory take twenty
    times the bytes that a hostile writer needs for them, and a hundred times as long.
    """
    msgspec.json.decode(content, type=_Anything)
    # What nobody asks for is passed over, whatever its strings hold.
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _PIECE_BYTES):
        decoder.decode(content[start : start + _PIECE_BYTES])
