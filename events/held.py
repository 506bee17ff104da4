"""Appends to lanes that somebody keeps locked: they wait here, in nobody's way, and their lanes are tried in turn.

A lane counts as held once a flush that was to write to it has waited too long for a lock, and until one gets its lock, whatever the log
then says of the append. A flush with several lanes does not tell which of them was locked, so all of them count as held. Each is then
tried by itself, those that were not held before first, and most of them get their lock at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar
from uuid import UUID

from events.record import Append

#: How many appends wait for one lane at most, once it is known to be held: all lanes together are less than a committer's queue. What
#: came in one burst before that stays, as long as it has patience.
WAITING_MAX = 150

REFUSAL: Final = "Another session keeps this part of the log locked; try again later"


class Waiting(Protocol):
    """Whoever waits with an append."""

    @property
    def append(self) -> Append: ...


W = TypeVar("W", bound=Waiting)


class HeldLanes(Generic[W]):
    """The held lanes, and the appends that wait for each. An append that is being tried is taken out meanwhile, and until `end_try`
    nothing else of its lane is tried."""

    def __init__(self) -> None:
        #: In the order in which they are tried next. A lane stays though nobody waits for it any more: it is held still, for all we know.
        self._waiting: OrderedDict[int, list[W]] = OrderedDict()
        self._tried: set[int] = set()

    def __contains__(self, lane: int) -> bool:
        return lane in self._waiting

    def __len__(self) -> int:
        """How many appends wait."""
        return sum(map(len, self._waiting.values()))

    def is_full(self, lane: int) -> bool:
        """Whether as many appends wait for the lane as may."""
        return len(self._waiting.get(lane, ())) >= WAITING_MAX

    def queue(self, pending: W) -> None:
        """Put `pending` behind all others that wait for its lane, which is held."""
        self._waiting[pending.append.lane].append(pending)

    def put(self, appends: Iterable[W]) -> None:
        """Put `appends`, which met a lock, before all others that wait for their lanes, which are held from now on.

        A lane that was not held before is tried first; one that was, last.
        """
        by_lane: dict[int, list[W]] = {}
        for pending in appends:
            by_lane.setdefault(pending.append.lane, []).append(pending)
        for lane, those in by_lane.items():
            is_known = lane in self._waiting
            self._waiting.setdefault(lane, [])[:0] = those
            self._waiting.move_to_end(lane, last=is_known)

    def take(self, *, count_max: int) -> list[W]:
        """What is tried next: appends to one lane, and at most one per stream, as the first one makes the second outdated."""
        for lane, waiting in self._waiting.items():
            if not waiting or lane in self._tried:
                continue
            by_stream: dict[UUID, W] = {}
            for pending in waiting:
                by_stream.setdefault(pending.append.stream_id, pending)
            batch = list(by_stream.values())[:count_max]
            taken = set(map(id, batch))
            waiting[:] = [pending for pending in waiting if id(pending) not in taken]
            self._tried.add(lane)
            return batch
        return []

    def end_try(self, lane: int) -> None:
        """The lane may be tried again."""
        self._tried.discard(lane)

    def let_go(self, lanes: Iterable[int]) -> list[W]:
        """These lanes are held no more. Returns what waited for them."""
        return [pending for lane in lanes for pending in self._waiting.pop(lane, ())]

    def take_out(self, which: Callable[[W], bool]) -> list[W]:
        """Remove and return the appends that `which` is true of. Their lanes stay held."""
        found = [pending for waiting in self._waiting.values() for pending in waiting if which(pending)]
        if found:
            for waiting in self._waiting.values():
                waiting[:] = [pending for pending in waiting if not which(pending)]
        return found
