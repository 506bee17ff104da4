"""Streams are assembled from events in any order, held in memory or spilled; missing and surplus events are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.codec import encode
from events.errors import LogCorrupted
from events.ids import lane_of
from events.types import AddressReserved, AnyEvent
from projections import stream_assembly
from projections.spilling import Event, EventBlock
from projections.stream_assembly import rows_of
from projections.tables import Row

A, B, C = (UUID(int=number << 8 | number) for number in (1, 2, 3))


class Times:
    """One row per stream: when its events happened, in the order in which they were fed."""

    def __init__(self, stream_id: UUID) -> None:
        self._row: Row = (stream_id,)

    def feed(self, events: Sequence[AnyEvent]) -> None:
        self._row += tuple(event.at_ms for event in events)

    def rows(self) -> list[Row]:
        return [self._row]

    def weight(self) -> int:
        return len(self._row)


def event(stream_id: UUID, version: int) -> Event:
    return (stream_id.bytes,), (version,), encode(AddressReserved(at_ms=version, hostname="süß", vpn_ip=""))


def gathered(events: Sequence[Event], *, lengths: dict[UUID, int], size: int = 3) -> list[Row]:
    targets = Counter(lane_of(UUID(bytes=key)) for (key,), _, _ in events)
    parts = [EventBlock.of(events[at : at + size]) for at in range(0, len(events), size)]
    known = {stream_id.bytes: length for stream_id, length in lengths.items()}
    return sorted(rows_of(parts, Times, targets=targets, lengths=known))


histories = st.fixed_dictionaries({stream_id: st.integers(1, 12) for stream_id in (A, B, C)})


@settings(max_examples=150)
@given(st.data(), histories)
def test_a_stream_is_assembled_whole_and_in_order_whatever_the_order_of_its_events(
    data: st.DataObject, history: dict[UUID, int]
) -> None:
    events = [event(stream_id, version) for stream_id, last in history.items() for version in range(1, last + 1)]
    mixed = data.draw(st.one_of(st.permutations(events), st.just(events)))
    # A length is known, or it is not, or more was appended since.
    known = {stream_id: last + data.draw(st.sampled_from((0, 0, 3))) for stream_id, last in history.items()}
    lengths = {stream_id: known[stream_id] for stream_id in data.draw(st.sets(st.sampled_from([*known])))}
    with pytest.MonkeyPatch.context() as patch:
        # All events are held in memory, or some and then none, or none. Unless all are held, streams are folded a few events at a time.
        patch.setattr(stream_assembly, "HELD_BYTES_MAX", data.draw(st.sampled_from((2**20, 1500, 0))))
        patch.setattr(stream_assembly, "CHUNK", data.draw(st.sampled_from((1, 4, 256))))

        assert gathered(mixed, lengths=lengths) == sorted(
            (stream_id, *range(1, last + 1)) for stream_id, last in history.items()
        )


@pytest.mark.parametrize("held_bytes_max", [2**20, 0])
@pytest.mark.parametrize("lengths", [{A: 4}, {}])
@pytest.mark.parametrize("versions", [(1, 2, 4), (2, 3), (1, 2, 2), (1, 2, 3, 4, 4), (1, 2, 3, 4, 5, 7)])
def test_a_missing_or_surplus_event_raises_an_error(
    versions: tuple[int, ...], lengths: dict[UUID, int], held_bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_assembly, "HELD_BYTES_MAX", held_bytes_max)
    monkeypatch.setattr(stream_assembly, "CHUNK", 2)

    with pytest.raises(LogCorrupted, match=str(A)):
        gathered([event(A, version) for version in versions], lengths=lengths)


def test_a_lane_with_fewer_events_than_expected_raises_an_error() -> None:
    parts = [EventBlock.of([event(A, 1), event(A, 2)])]

    with pytest.raises(LogCorrupted, match="2 events where 3 must be"):
        list(rows_of(parts, Times, targets={lane_of(A): 3}, lengths={}))
