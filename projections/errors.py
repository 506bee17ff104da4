"""Errors of building and operating projections.

RebuildError
├── RebuildBusy           another rebuild of it is running
├── RebuildLockLost       the session that kept others out has ended; nothing was swapped
├── GenerationInUse       another session still folds or reads the generation that was to be dropped
├── Outdated              the live version is newer than this code's
├── LiveIncomplete        something of the live generation is missing
├── NamesTaken            other relations have the names that its tables or their indexes need
├── ParityMismatch        the live table differs from the log; nothing was swapped
├── WritersNotStopped     no try of the swap was fast enough
├── SwapUnknown           the database does not say whether the swap was made
├── FoldFailed            a process that folds lanes has failed
├── EventRefused          the build refuses an event
├── NothingToRollBackTo   there is no earlier generation that this code can follow
├── NotParked             the lane is not parked
├── ParkedElsewhere       the lane is parked at another event
├── NotToBeSkipped        no unfinished build has yet to apply the event
└── NotSkipped            the event is not skipped
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from events.errors import EventsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from projections.drift import Comparison


class RebuildError(Exception):
    """Root of the errors of building and operating projections."""


class RebuildBusy(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(f"Another rebuild of {name} is running")
        self.name = name


class RebuildLockLost(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"The connection with the rebuild lock of {name} was lost, so nothing was swapped: run this again to continue"
        )
        self.name = name


class GenerationInUse(RebuildError):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"Generation {number} of {name} is still in use by another session; try again when it is done")
        self.name = name
        self.number = number


class Outdated(RebuildError):
    def __init__(self, name: str, version: int, *, live: int) -> None:
        super().__init__(
            f"{name} is live in version {live}, which is newer than this release's version {version}: to go back to an earlier"
            " version, use `hydracore projections rollback`"
        )
        self.name = name
        self.version = version
        self.live = live


class LiveIncomplete(RebuildError):
    """`missing`: what is missing, in words. A rebuild that accepts drift creates it anew."""

    def __init__(self, name: str, missing: Sequence[str]) -> None:
        super().__init__(
            f"{' and '.join(missing)} of {name} is missing: `hydracore projections rebuild {name} --accept-drift` recreates it"
            " from the log"
        )
        self.name = name
        self.missing = missing


class NamesTaken(RebuildError):
    """`taken`: which relations have the names, in words."""

    def __init__(self, name: str, taken: Sequence[str]) -> None:
        super().__init__(
            f"{name} cannot be put in place, because other relations have the names that it needs: {' and '.join(taken)}."
            " Rename or drop them, then run this again"
        )
        self.name = name
        self.taken = taken


class ParityMismatch(RebuildError):
    """`comparison`: where they differ. The build is kept, so that accepting the drift need not fold it again."""

    def __init__(self, name: str, comparison: Comparison) -> None:
        super().__init__(f"{comparison.drifted} rows of {name} differ from the log; nothing was swapped")
        self.name = name
        self.comparison = comparison


class WritersNotStopped(RebuildError):
    def __init__(self, name: str, tries: int) -> None:
        super().__init__(
            f"Could not swap {name} in {tries} tries, because writers could not be stopped in time: a long transaction locks it"
            " or its lanes, or too many events are being appended. Try again later"
        )
        self.name = name
        self.tries = tries


class SwapUnknown(RebuildError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"The connection was lost during the swap of {name}, so its outcome is unknown. Once the database answers, see"
            " `hydracore projections list`: if the former generation is still live, run this again"
        )
        self.name = name


class FoldFailed(RebuildError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Folding the lanes of {name} failed: {reason}")
        self.name = name
        self.reason = reason


class EventRefused(RebuildError):
    """`error` is named by its class alone, unless it is this project's: its text may quote the event's contents.

    `seq` and `tag`: the event's number in its lane and its type, None where they are not known. They are known for a
    followed projection, which can skip the event.
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
        super().__init__(f"{name} cannot apply {what}: {why}")
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
    """There is no unfinished build of `version` that has not applied the event yet."""

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
        super().__init__(f"Event {seq} of lane {lane} is not skipped in the live version of {name}")
        self.name = name
        self.lane = lane
        self.seq = seq
