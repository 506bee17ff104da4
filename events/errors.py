"""Everything the write side can refuse or fail with.

EventsError
├── Rejected                the command does not fit the instance's state; nothing was written
│   ├── NotFound            no such instance
│   ├── TransitionRefused   the lifecycle has no such step
│   ├── RequestMismatch     same idempotency key, other request
│   ├── AttemptSuperseded   an agent of an older attempt or of a deleted instance
│   ├── AgentDraining       an agent of an instance that is being deleted, whose last chats may still end
│   ├── BootSuperseded      an agent process that has been replaced by a later boot
│   ├── TokenRefused        an enrol token that is wrong or out of time
│   ├── KeyNotPending       the agent key was acknowledged and cannot be fetched again
│   └── SequenceGap         a callback, or a batch of usage, came before its predecessor
├── VersionConflict         another writer was faster: load again and decide again
├── ReservationTaken        a unique value is held by another instance
├── LogCorrupted            the log contradicts itself: an alarm, never a skip
├── EventUnreadable         an event of a version that this code does not know
├── StoreUnavailable        the database did not answer in time; the outcome is safe to retry
├── CustomerErased          the customer's key was destroyed: nothing can be sealed for them any more
├── KeyUnreadable           the customer's key does not open: nothing can be sealed for them
└── MasterKeyWrong          the customers' keys were wrapped by a master key that the settings do not name
"""

from __future__ import annotations

from uuid import UUID

from events.lifecycle import Status


class EventsError(Exception):
    """Root of this package's errors."""


class Rejected(EventsError):
    """A command that the instance's state does not allow. Nothing was written."""

    def __init__(self, instance_id: UUID, reason: str) -> None:
        super().__init__(reason)
        self.instance_id = instance_id
        self.reason = reason


class NotFound(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "Instance not found")


class TransitionRefused(Rejected):
    def __init__(self, instance_id: UUID, *, trigger: str, status: Status) -> None:
        super().__init__(instance_id, f"An instance that is {status} cannot {trigger.replace('_', ' ')}")
        self.trigger = trigger
        self.status = status


class RequestMismatch(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "This idempotency key was used with another request")


class AttemptSuperseded(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "This attempt is over; the agent must stop")


class AgentDraining(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        reason = "This instance is being deleted; only the usage of its last chats is still accepted"
        super().__init__(instance_id, reason)


class BootSuperseded(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "A later boot of this agent has enrolled; this process must stop")


class TokenRefused(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "The enrol token is wrong or has expired")


class KeyNotPending(Rejected):
    def __init__(self, instance_id: UUID) -> None:
        super().__init__(instance_id, "The agent key was acknowledged; rotate it to issue another")


class SequenceGap(Rejected):
    def __init__(self, instance_id: UUID, *, expected_seq: int) -> None:
        super().__init__(instance_id, f"Expected number {expected_seq} first")
        self.expected_seq = expected_seq


class VersionConflict(EventsError):
    def __init__(self, stream_id: UUID, *, expected: int, actual: int) -> None:
        super().__init__(f"Stream {stream_id} is at version {actual}, not {expected}")
        self.stream_id = stream_id
        self.expected = expected
        self.actual = actual


class ReservationTaken(EventsError):
    def __init__(self, stream_id: UUID) -> None:
        super().__init__(f"A unique value of {stream_id} is held by another instance")
        self.stream_id = stream_id


class LogCorrupted(EventsError):
    def __init__(self, lane: int, seq: int, what: str) -> None:
        super().__init__(f"Lane {lane} at {seq}: {what}")
        self.lane = lane
        self.seq = seq


class EventUnreadable(EventsError):
    """`is_newer`: whether a newer HydraCore may have written it, and not only somebody who made it up."""

    def __init__(self, tag: str, schema_version: int, *, is_newer: bool) -> None:
        super().__init__(
            f"Version {schema_version} of event {tag} is unknown to this release; it may have been written by a newer one"
        )
        self.tag = tag
        self.schema_version = schema_version
        self.is_newer = is_newer


class StoreUnavailable(EventsError):
    """The database did not answer in time, or a lock on the lane was not released. The command may or may not have been appended; its
    id makes a retry safe.
    """


class CustomerErased(EventsError):
    """The customer's key was destroyed: nothing can be encrypted for them any more."""


class KeyUnreadable(EventsError):
    """The customer's key was damaged, or wrapped by another master key: nothing can be encrypted for them."""


class MasterKeyWrong(EventsError):
    """The customers' keys were wrapped by a master key that the settings do not name."""
