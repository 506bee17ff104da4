"""Remembered states of streams, in a process or in a snapshot, and the version of the fold that made them."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from events.state import Instance

#: The version of the fold. Raise it with every change of the fold or of `Instance` after which an existing history gives another
#: state: snapshots of other versions are ignored, and replaced in time.
FOLD: Final = 1

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(Instance).decode


class Remembered(NamedTuple):
    """A state and the digest of its last event, by which a process can tell whether the log still has that event."""

    state: Instance
    digest: bytes
