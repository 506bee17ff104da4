"""What building projections, and looking after them, can fail with.

RebuildError
├── UnknownProjection     this code has no projection of that name
├── RebuildBusy           somebody else is rebuilding it
├── GenerationInUse       somebody still folds or reads what was to be dropped
├── Outdated              what is live is of a newer version than this code
├── LiveIncomplete        something of what is live is missing
├── NamesTaken            something else has the names that its tables or their indexes must have
├── ParityMismatch        the live table is not what the log says; nothing was swapped
├── WritersNotStopped     no moment was found in which the swap could be made fast enough
├── SwapUnknown           nobody can say whether the swap was made
├── FoldFailed            a process that folds lanes has failed
├── EventRefused          the build cannot take an event
├── NothingToRollBackTo   there is no earlier generation that this code can follow
├── NotParked             the lane does not wait for anybody
├── ParkedElsewhere       it waits at another event than the one that was looked at
├── NotToBeSkipped        there is no build that has yet to take the event
└── NotSkipped            it was not skipped
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from events.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from projections.drift import Comparison


class RebuildError(Exception):
    """Root of the errors of building projections and looking after them."""


class UnknownProjection(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(f"There is no projection {name!r}")
        self.name = name


class RebuildBusy(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(f"Somebody else is rebuilding {name}")
        self.name = name


class GenerationInUse(RebuildError):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"Somebody still folds or reads generation {number} of {name}; drop it once that is done")
        self.name = name
        self.number = number


class Outdated(RebuildError):
    def __init__(self, name: str, version: int, *, live: int) -> None:
        super().__init__(
            f"{name} is live in version {live}, and this code has version {version}: `hydracore projections rollback`"
            " goes back to an earlier one"
        )
        self.name = name
        self.version = version
        self.live = live


class LiveIncomplete(RebuildError):
    """`missing`: what, in words. A rebuild that is to accept whatever is wrong makes it anew."""

    def __init__(self, name: str, missing: Sequence[str]) -> None:
        super().__init__(
            f"{' and '.join(missing)} of {name} is missing: `hydracore projections rebuild {name} --accept-drift` makes it anew"
            " from the log"
        )
        self.name = name
        self.missing = missing


class NamesTaken(RebuildError):
    """`taken`: by what, in words."""

    def __init__(self, name: str, taken: Sequence[str]) -> None:
        super().__init__(
            f"{name} cannot be put in place, because the names that it needs are taken by {' and '.join(taken)}:"
            " rename or drop that, then run this again"
        )
        self.name = name
        self.taken = taken


class ParityMismatch(RebuildError):
    """`comparison` says where. The build is kept, so that accepting the drift does not fold everything again."""

    def __init__(self, name: str, comparison: Comparison) -> None:
        super().__init__(f"{comparison.drifted} rows of {name} are not what the log says; nothing was swapped")
        self.name = name
        self.comparison = comparison


class WritersNotStopped(RebuildError):
    def __init__(self, name: str, tries: int) -> None:
        super().__init__(
            f"Could not swap {name} fast enough in {tries} tries: a long transaction holds it or its lanes, or too much is"
            " appended meanwhile"
        )
        self.name = name
        self.tries = tries


class SwapUnknown(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"Nobody can say whether {name} was swapped, because the database has gone and does not answer: once it does,"
            " `hydracore projections list` shows which generation is live; where it is the one before, run this again"
        )
        self.name = name


class FoldFailed(RebuildError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Folding the lanes of {name} failed: {reason}")
        self.name = name
        self.reason = reason


class EventRefused(RebuildError):
    """`error`, unless it is one of ours, is told of by its class alone: its text may be of what the event says.

    `seq` and `tag`: the event's number in its lane and its type, where they are known; they are for a followed projection, which can
    be told to skip it.
    """

    def __init__(
        self, name: str, error: Exception, *, lane: int, stream_id: UUID, seq: int | None = None, tag: str | None = None
    ) -> None:
        what = f"an event of {stream_id} in lane {lane}"
        if seq is not None:
            what = f"event {seq} of lane {lane} ({tag} of {stream_id})"
        why = type(error).__name__
        if isinstance(error, EventsError):
            why += f": {error}"
        super().__init__(f"{name} cannot take {what}: {why}")
        self.name = name
        self.lane = lane
        self.stream_id = stream_id
        self.seq = seq
        self.tag = tag


class NothingToRollBackTo(RebuildError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot go back: {reason}")
        self.name = name


class ParkedElsewhere(RebuildError):
    def __init__(self, name: str, lane: int, *, at: int, asked: int) -> None:
        super().__init__(f"Lane {lane} of {name} is parked at event {at}, not at event {asked}")
        self.name = name
        self.lane = lane
        self.at = at
        self.asked = asked


class NotToBeSkipped(RebuildError):
    """No unfinished build of `version` has yet to take the event."""

    def __init__(self, name: str, version: int, reason: str) -> None:
        super().__init__(f"Nothing was skipped in version {version} of {name}: {reason}")
        self.name = name
        self.version = version


class NotParked(RebuildError):
    def __init__(self, name: str, lane: int) -> None:
        super().__init__(f"Lane {lane} of {name} is not parked")
        self.name = name
        self.lane = lane


class NotSkipped(RebuildError):
    def __init__(self, name: str, lane: int, seq: int) -> None:
        super().__init__(f"Event {seq} of lane {lane} is not skipped in the version of {name} that is live")
        self.name = name
        self.lane = lane
        self.seq = seq
