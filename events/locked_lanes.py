"""The queue of appends to lanes that another session keeps locked. They wait here, apart from all others, and lanes are tried in turn.

A lane counts as locked from the time at which a flush that writes to it has waited too long for a lock, until a flush gets its lock,
even if the log then refuses the append. A flush with several lanes does not tell which of them was locked, so all of them count as
locked. Each is then tried by itself, newly locked ones first, and most of them get their lock at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar
from uuid import UUID

from events.record import Append

#: The most appends that wait for one lane, once it is known to be locked. All lanes together have fewer than a committer's queue. A
#: larger burst that came before that stays queued until it has waited too long.
WAITING_PER_LANE_MAX = 150

LANE_LOCKED: Final = "Another session keeps this part of the log locked; try again later"


class WaitingAppend(Protocol):
    """An append that waits, with whatever else the committer needs for it."""

    @property
    def append(self) -> Append: ...


W = TypeVar("W", bound=WaitingAppend)


class LockedLanes(Generic[W]):
    """The locked lanes, and the appends that wait for each.

    An append that is being tried is removed meanwhile, and until `end_try` no other append to its lane is tried.
    """

    def __init__(self) -> None:
        #: In the order in which lanes are tried next. A lane stays even if no append waits for it any more: it may still be locked.
        self._waiting: OrderedDict[int, list[W]] = OrderedDict()
        self._being_tried: set[int] = set()

    def __contains__(self, lane: int) -> bool:
        return lane in self._waiting

    def __len__(self) -> int:
        """How many appends wait."""
        return sum(map(len, self._waiting.values()))

    def is_full(self, lane: int) -> bool:
        """Whether no further append may wait for the lane."""
        return len(self._waiting.get(lane, ())) >= WAITING_PER_LANE_MAX

    def enqueue(self, pending: W) -> None:
        """Put `pending` behind all others that wait for its lane, which must be locked."""
        self._waiting[pending.append.lane].append(pending)

    def add_blocked(self, appends: Iterable[W]) -> None:
        """Put `appends`, which met a lock, before all others that wait for their lanes. These lanes count as locked from now on.

        A lane that was not locked before is tried first, the others last.
        """
        by_lane: dict[int, list[W]] = {}
        for pending in appends:
            by_lane.setdefault(pending.append.lane, []).append(pending)
        for lane, those in by_lane.items():
            is_known = lane in self._waiting
            self._waiting.setdefault(lane, [])[:0] = those
            self._waiting.move_to_end(lane, last=is_known)

    def next_batch(self, *, count_max: int) -> list[W]:
        """The appends to try next: all to one lane, and at most one per stream, as the first one makes the second outdated."""
        for lane, waiting in self._waiting.items():
            if not waiting or lane in self._being_tried:
                continue
            by_stream: dict[UUID, W] = {}
            for pending in waiting:
                by_stream.setdefault(pending.append.stream_id, pending)
            batch = list(by_stream.values())[:count_max]
            taken = set(map(id, batch))
            waiting[:] = [pending for pending in waiting if id(pending) not in taken]
            self._being_tried.add(lane)
            return batch
        return []

    def end_try(self, lane: int) -> None:
        """Allow the lane to be tried again."""
        self._being_tried.discard(lane)

    def release(self, lanes: Iterable[int]) -> list[W]:
        """Count these lanes as locked no longer. Returns the appends that waited for them."""
        return [pending for lane in lanes for pending in self._waiting.pop(lane, ())]

    def remove_if(self, condition: Callable[[W], bool]) -> list[W]:
        """Remove and return the appends for which `condition` is true. Their lanes stay locked."""
        found = [pending for waiting in self._waiting.values() for pending in waiting if condition(pending)]
        if found:
            for waiting in self._waiting.values():
                waiting[:] = [pending for pending in waiting if not condition(pending)]
        return found
