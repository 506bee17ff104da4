"""What is remembered of a stream, in a process or in a snapshot, and by which rules it was made."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from events.state import Instance

#: The rules that states are made by. To be raised with every change of them, or of what a state holds, after which a history that is in
#: a log gives another state: what was made by others is not looked at, and in time replaced.
FOLD: Final = 1

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(Instance).decode


class Remembered(NamedTuple):
    """A state and the digest of the last event behind it, which tells whether the log still says so."""

    state: Instance
    digest: bytes
