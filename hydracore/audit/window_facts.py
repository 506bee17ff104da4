"""Makes facts, from which followed projections are folded, out of the windows of a lane that is being verified.

So the log need not be read a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from uuid import UUID

from events.diagnosis import POSTGRES_EPOCH_US
from events.times import EPOCH
from events.upcast import read
from events.window import Window
from projections.fact import Fact, WithoutPayload

#: The most ids of streams that are cached: a stream's commands are near each other.
STREAMS_MAX = 16_384


@lru_cache(STREAMS_MAX)
def _id_of(stream: bytes) -> UUID:
    return UUID(bytes=stream)


class WindowFacts:
    """The facts of one lane. `payload_types`: the stored names of the events whose payloads are needed; None for all."""

    def __init__(self, lane: int, payload_types: Collection[str] | None) -> None:
        self._lane = lane
        self._payload_types = None if payload_types is None else frozenset(payload_types)
        self._without_payload: dict[str, WithoutPayload] = {}

    def payload_bytes(self, window: Window) -> int:
        """The bytes of the payloads in a window that are needed."""
        named = zip(window.type_names(), window.payloads, strict=True)
        return sum(
            len(payload) for name, payload in named if self._payload_types is None or name in self._payload_types
        )

    def of(self, window: Window) -> Iterator[tuple[str, Fact]]:
        """The facts of a valid window (`events.window`), in order, each with the stored name of its type.

        Raises `EventUnreadable`, `msgspec.ValidationError`, and `OverflowError` for a time that no calendar has.
        """
        events = zip(window.seqs, window.type_names(), window.schema_versions, window.payloads, strict=True)
        orders = zip(window.event_counts, window.commands(), strict=True)
        for count, (stream, tenant_id, command, actor, recorded_us) in orders:
            stream_id = _id_of(stream)
            recorded_at = EPOCH + timedelta(microseconds=recorded_us + POSTGRES_EPOCH_US)
            first = True
            for seq, name, schema_version, payload in islice(events, count):
                if self._payload_types is None or name in self._payload_types:
                    event_or_type = read(payload, tag=name, schema_version=schema_version)
                else:
                    event_or_type = self._without_payload.get(name) or self._without_payload.setdefault(
                        name, WithoutPayload(name)
                    )
                fact = Fact(
                    lane=self._lane,
                    seq=seq,
                    stream_id=stream_id,
                    tenant_id=tenant_id,
                    recorded_at=recorded_at,
                    actor=actor,
                    command=command,
                    first=first,
                    event_or_type=event_or_type,
                )
                yield name, fact
                first = False
