"""Which appends wait for which locked lane, and which are tried next."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from events.locked_lanes import LockedLanes
from events.record import Append
from tests.lifecycle import InMemoryInstance, request
from tests.store_commands import origin


class One(NamedTuple):
    """A caller that waits with an append."""

    append: Append


def one(lane: int, *, stream: int = 0) -> One:
    life = InMemoryInstance(UUID(int=64 * stream + lane))
    events = life.execute(request())
    return One(
        Append(
            stream_id=life.id,
            lane=lane,
            name="RequestInstance",
            before=None,
            after=life.state,
            events=events,
            origin=origin(),
        )
    )


def tried(locked: LockedLanes[One]) -> list[int]:
    """The lanes that are tried next, in order, while no try ends."""
    lanes: list[int] = []
    while batch := locked.next_batch(count_max=64):
        lanes.append(batch[0].append.lane)
    return lanes


def test_a_newly_locked_lane_is_tried_before_lanes_that_were_locked_earlier() -> None:
    locked = LockedLanes[One]()
    locked.add_blocked([one(1), one(2)])

    locked.add_blocked([one(3)])

    assert tried(locked)[0] == 3


def test_locked_lanes_are_tried_in_turn() -> None:
    locked = LockedLanes[One]()
    locked.add_blocked([one(1), one(2), one(3)])
    turns: list[int] = []

    for _ in range(6):
        batch = locked.next_batch(count_max=64)
        turns.append(batch[0].append.lane)
        locked.add_blocked(batch)
        locked.end_try(turns[-1])

    assert set(turns[:3]) == {1, 2, 3}
    assert turns[3:] == turns[:3]


def test_appends_that_a_try_found_blocked_are_tried_before_later_ones() -> None:
    locked = LockedLanes[One]()
    early, late = one(1, stream=1), one(1, stream=2)
    locked.add_blocked([early])
    batch = locked.next_batch(count_max=64)
    locked.enqueue(late)

    locked.add_blocked(batch)
    locked.end_try(1)

    assert locked.next_batch(count_max=1) == [early]


def test_a_try_takes_one_append_of_each_stream_and_leaves_the_next_ones_in_order() -> None:
    locked = LockedLanes[One]()
    first, second, third, other = (one(1, stream=stream) for stream in (1, 1, 1, 2))
    locked.add_blocked([first, second, third, other])

    batches: list[list[One]] = []
    while batch := locked.next_batch(count_max=64):
        batches.append(batch)
        locked.end_try(1)

    assert batches == [[first, other], [second], [third]]


def test_appends_beyond_the_limit_of_a_try_wait_for_the_next_one() -> None:
    locked = LockedLanes[One]()
    waiting = [one(1, stream=stream) for stream in range(5)]
    locked.add_blocked(waiting)

    batch = locked.next_batch(count_max=3)
    locked.end_try(1)

    assert batch + locked.next_batch(count_max=3) == waiting
    assert len(locked) == 0
