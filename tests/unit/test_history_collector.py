"""Histories are collected while their lanes are read: each is returned once, complete and in order, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.codec import encode
from events.ids import lane_of_bytes
from events.types import AddressReserved
from events.upcast import OutdatedEvent, StoredEvent
from events.window import Window
from hydracore.audit.history_collector import HELD_BYTES_MAX, HistoryCollector

#: Streams of one lane, on both sides of each half.
STREAMS = [UUID(int=share << 8).bytes for share in (0, 63, 100, 128, 255)]
LANE = 0


class Read(NamedTuple):
    """An event as a window has it."""

    stream: bytes
    version: int
    schema_version: int = 1

    @property
    def payload(self) -> bytes:
        return encode(AddressReserved(at_ms=self.version, hostname="süß", vpn_ip=""))


def window(events: Sequence[Read]) -> Window:
    fields = dict.fromkeys(Window._fields, b"") | {
        "event_stream_ids": (16).to_bytes(8).join(event.stream for event in events),
        "versions": [event.version for event in events],
        "types": b"\0".join(b"address_reserved" for _ in events),
        "schema_versions": [event.schema_version for event in events],
        "payloads": [event.payload for event in events],
    }
    return Window(**fields)  # pyright: ignore[reportArgumentType] - the other fields are not read


def whole(
    events: Sequence[Read], lengths: dict[bytes, int], *, size: int = 3, bytes_max: int = HELD_BYTES_MAX
) -> dict[bytes, list[bytes]]:
    """The histories that are returned for `events` in windows of that size."""
    collector, found = HistoryCollector(dict(lengths), bytes_max=bytes_max), dict[bytes, list[bytes]]()
    for at in range(0, len(events), size):
        collector.take(LANE, window(events[at : at + size]))
        count, size_whole = collector.complete_events, collector.complete_bytes
        given = collector.pop_complete()
        assert sum(map(len, given.values())) == count
        assert sum(len(payload) for payloads in given.values() for payload in payloads) == size_whole
        assert not given.keys() & found.keys(), "each is returned once"
        found |= given
    return found


def history(stream: bytes, versions: Iterable[int]) -> list[Read]:
    return [Read(stream, version) for version in versions]


@st.composite
def interleaved(draw: st.DrawFn) -> list[Read]:
    """Streams of some length whose events come in order, between those of others."""
    lengths = {stream: draw(st.integers(0, 9)) for stream in STREAMS}
    order = draw(st.permutations([stream for stream, length in lengths.items() for _ in range(length)]))
    return [Read(stream, order[: at + 1].count(stream)) for at, stream in enumerate(order)]


@settings(max_examples=150)
@given(interleaved(), st.integers(1, 7), st.sampled_from([HELD_BYTES_MAX, 4_000, 1_000, 0]), st.integers(0, 3))
def test_a_history_is_returned_complete_and_in_order_or_not_at_all(
    events: list[Read], size: int, bytes_max: int, since: int
) -> None:
    """`since`: how many events of each stream were appended after its length was read."""
    counts = {stream: sum(event.stream == stream for event in events) for stream in STREAMS}
    lengths = {stream: count - since for stream, count in counts.items() if count > since}

    found = whole(events, lengths, size=size, bytes_max=bytes_max)

    for stream, payloads in found.items():
        assert payloads == [event.payload for event in history(stream, range(1, lengths[stream] + 1))]
    if bytes_max == HELD_BYTES_MAX:
        assert found.keys() == lengths.keys()


def test_some_histories_are_collected_when_memory_is_too_small_for_all() -> None:
    ends = [event for version in (1, 2) for stream in STREAMS for event in history(stream, [version])]
    one = len(ends[0].payload) + 64

    found = whole(ends, dict.fromkeys(STREAMS, 2), size=1, bytes_max=4 * one)

    assert set(found) == set(STREAMS[:2]), "those in the first quarter"


def test_a_returned_history_no_longer_counts_towards_the_memory_bound() -> None:
    """Any number of histories is collected if they follow one another."""
    events = [event for stream in STREAMS for event in history(stream, range(1, 11))]
    weight = 10 * (len(events[0].payload) + 64)

    assert set(whole(events, dict.fromkeys(STREAMS, 10), bytes_max=3 * weight)) == set(STREAMS)


def test_a_history_that_lacks_an_event_is_not_returned() -> None:
    a, b, c, d, _ = STREAMS
    events = [*history(a, (1, 3)), *history(b, (2, 3)), *history(c, (1, 1, 2, 3)), *history(d, (1, 2, 2, 3))]

    found = whole(events, dict.fromkeys(STREAMS, 3))

    assert found == {c: [event.payload for event in history(c, (1, 2, 3))]}


def test_a_history_whose_events_are_out_of_order_is_not_returned() -> None:
    a, b, *_ = STREAMS

    assert whole([*history(a, (1, 3, 2, 4)), *history(b, (1, 2, 2, 4))], {a: 4, b: 4}) == {}


def test_a_history_that_begins_again_is_returned_once() -> None:
    (stream, *_) = STREAMS

    found = whole(history(stream, (1, 2, 1, 2)), {stream: 2}, size=2)

    assert found == {stream: [event.payload for event in history(stream, (1, 2))]}


@pytest.mark.parametrize("elsewhere", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
def test_events_of_a_stream_in_another_lane_are_not_part_of_its_history(elsewhere: tuple[int, ...]) -> None:
    (stream, *_) = STREAMS
    collector = HistoryCollector({stream: 3})

    collector.take(LANE, window(history(stream, (1, 2))))
    collector.take(LANE + 1, window([Read(stream, version, schema_version=7) for version in elsewhere]))
    collector.take(LANE, window(history(stream, (3,))))

    assert collector.pop_complete() == {stream: [event.payload for event in history(stream, (1, 2, 3))]}


def test_a_history_in_the_wrong_lane_is_not_returned() -> None:
    stranger = UUID(int=1).bytes
    assert lane_of_bytes(stranger) != LANE

    assert whole(history(stranger, (1, 2)), {stranger: 2}) == {}


def test_an_event_of_another_schema_version_is_returned_as_outdated() -> None:
    (stream, *_) = STREAMS
    events = [Read(stream, 1), Read(stream, 2, schema_version=7)]

    (payloads,) = whole(events, {stream: 2}).values()

    first, second = msgspec.json.decode(b"[" + b",".join(payloads) + b"]", type=list[StoredEvent])
    assert isinstance(first, AddressReserved)
    assert isinstance(second, OutdatedEvent)
    assert (second.name, second.schema_version, bytes(second.payload)) == ("address_reserved", 7, events[1].payload)
