"""JSON that somebody else made: what reading it may raise."""

from __future__ import annotations

from typing import Final

import msgspec

#: What `msgspec` raises at JSON that is none, not of the shape agreed on, or nested without end.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
