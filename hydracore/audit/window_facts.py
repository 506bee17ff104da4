"""Facts out of the windows of a lane that is being verified: what followed projections are folded from, without a second look at the log."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from events.upcast import read
from events.window import Window
from projections.fact import Fact, WithoutPayload

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class WindowFacts:
    """One lane's. `told`: the stored names of the events of which somebody wants to know what they say; None for all."""

    def __init__(self, lane: int, told: Collection[str] | None) -> None:
        self._lane = lane
        self._told = told
        self._untold: dict[str, WithoutPayload] = {}
        self._streams: dict[bytes, UUID] = {}

    def of(self, window: Window) -> Iterator[tuple[str, Fact]]:
        """The facts of a window that fits (`events.window`), in order, each with the stored name of its type.

        Raises `EventUnreadable`, `msgspec.ValidationError`, and `OverflowError` for a time that no calendar has.
        """
        events = zip(window.seqs, window.type_names(), window.schema_versions, window.payloads, strict=True)
        for count, (stream, tenant_id, command, actor, recorded_us) in zip(
            window.event_counts, window.orders(), strict=True
        ):
            stream_id = self._stream_id(stream)
            recorded_at = _POSTGRES_EPOCH + timedelta(microseconds=recorded_us)
            for nth in range(count):
                seq, name, schema_version, payload = next(events)
                if self._told is None or name in self._told:
                    said = read(payload, tag=name, schema_version=schema_version)
                else:
                    said = self._untold.get(name) or self._untold.setdefault(name, WithoutPayload(name))
                yield (
                    name,
                    Fact(
                        lane=self._lane,
                        seq=seq,
                        stream_id=stream_id,
                        tenant_id=tenant_id,
                        recorded_at=recorded_at,
                        actor=actor,
                        command=command,
                        first=nth == 0,
                        said=said,
                    ),
                )

    def _stream_id(self, stream: bytes) -> UUID:
        known = self._streams.get(stream)
        if known is None:
            known = self._streams[stream] = UUID(bytes=stream)
        return known
