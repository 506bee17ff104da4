"""The state of a stream as processes cache it and snapshots store it, and the version of the fold that made it."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from events.state import Instance

#: The version of the fold. Raise it with every change of the fold or of `Instance` after which an existing history gives another
#: state: snapshots of other versions are ignored, and replaced in time.
FOLD_VERSION: Final = 1

encode: Final = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(Instance).decode


class StreamState(NamedTuple):
    """A state and the digest of its last event. The digest shows whether the log still has that event."""

    state: Instance
    digest: bytes
