"""Reading JSON from others: the exceptions to expect, and a check that it is an object."""

from __future__ import annotations

import codecs
from typing import Final

import msgspec

#: What `msgspec` raises for text that is not JSON, is not of the expected shape, or is nested too deeply.
JSON_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

#: Bytes per piece. A decoded character may take four times its bytes.
_CHUNK_BYTES: Final = 256 * 1024


class _AnyObject(msgspec.Struct):
    """An object with any fields."""


def require_object(content: bytes) -> None:
    """Raise one of `JSON_ERRORS` unless `content` is a JSON object.

    Its contents are not decoded to objects: in memory those take twenty times the bytes that a hostile client has to
    send, and a hundred times the time.
    """
    msgspec.json.decode(content, type=_AnyObject)
    # msgspec skips unknown fields without a check that their strings are UTF-8.
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _CHUNK_BYTES):
        decoder.decode(content[start : start + _CHUNK_BYTES])
