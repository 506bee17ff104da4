"""The lifecycle of an instance, as a table.

It is a `transitions.Machine` without a model, and so without a state: looking up a transition takes about a microsecond.
Everything that depends on the lifecycle (decide, checks, the diagram in docs/lifecycle.md) is derived from it.
"""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

from transitions import Machine

#: In the order in which an instance can first reach them.
Status = Literal["pending", "provisioning", "running", "failed", "error", "deleting", "deleted"]

Trigger = Literal["provision", "become_ready", "fail", "lose", "delete", "finish_deletion"]

PENDING: Final = "pending"
PROVISIONING: Final = "provisioning"
RUNNING: Final = "running"
FAILED: Final = "failed"
ERROR: Final = "error"
DELETING: Final = "deleting"
DELETED: Final = "deleted"

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

TRANSITIONS: Final[tuple[tuple[Trigger, Status, Status], ...]] = (
    ("provision", PENDING, PROVISIONING),
    ("become_ready", PROVISIONING, RUNNING),
    *(("fail", source, FAILED) for source in (PENDING, PROVISIONING)),
    ("lose", RUNNING, ERROR),
    *(("delete", source, DELETING) for source in (PENDING, PROVISIONING, RUNNING, FAILED, ERROR)),
    ("finish_deletion", DELETING, DELETED),
)
"""(trigger, source, destination)"""


def machine() -> Machine:
    """A new machine with the table. Its states are strings, because enum states would have names that differ from their values."""
    return Machine(
        model=None,
        states=list(STATUSES),
        transitions=[list(row) for row in TRANSITIONS],
        initial=PENDING,
        auto_transitions=False,
    )


_TABLE: Final = machine()


def destination(trigger: Trigger, *, source: Status) -> Status | None:
    """The status that `trigger` leads to from `source`, or None when the lifecycle has no such step."""
    found = _TABLE.get_transitions(trigger, source=source)
    return cast("Status", found[0].dest) if found else None
