"""Appends to lanes that somebody keeps locked: they wait here, in nobody's way, and their lanes are tried in turn.

A lane is held from when a flush that was to write to it waited too long for a lock until one waits no more, whatever the log says to
its append. Of a flush with several lanes nobody knows which one it was: each is tried by itself, the new ones first, and most are let
in at once.
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

REFUSAL: Final = "Somebody keeps locked what this is to be written to; try again later"


class Waiting(Protocol):
    """Whoever waits with an append."""

    @property
    def append(self) -> Append: ...


W = TypeVar("W", bound=Waiting)


class HeldLanes(Generic[W]):
    """Who waits for which lane. What is tried is in nobody's list meanwhile, and its lane is tried by nobody else."""

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
        """Whether nobody more may wait for it."""
        return len(self._waiting.get(lane, ())) >= WAITING_MAX

    def queue(self, pending: W) -> None:
        """Behind all who wait for the lane, which is held."""
        self._waiting[pending.append.lane].append(pending)

    def put(self, appends: Iterable[W]) -> None:
        """Before all who wait for their lanes: these were not let in, and have held lanes if they had none."""
        by_lane: dict[int, list[W]] = {}
        for pending in appends:
            by_lane.setdefault(pending.append.lane, []).append(pending)
        for lane, those in by_lane.items():
            is_known = lane in self._waiting
            self._waiting.setdefault(lane, [])[:0] = those
            self._waiting.move_to_end(lane, last=is_known)

    def take(self, *, count_max: int) -> list[W]:
        """What is tried next: of one lane, and at most one append per stream, as a second one was decided on a state now past."""
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
        """It may be tried again."""
        self._tried.discard(lane)

    def let_go(self, lanes: Iterable[int]) -> list[W]:
        """These are held no more: who waited for them."""
        return [pending for lane in lanes for pending in self._waiting.pop(lane, ())]

    def take_out(self, which: Callable[[W], bool]) -> list[W]:
        """Those of whom this is true wait no more."""
        found = [pending for waiting in self._waiting.values() for pending in waiting if which(pending)]
        if found:
            for waiting in self._waiting.values():
                waiting[:] = [pending for pending in waiting if not which(pending)]
        return found
