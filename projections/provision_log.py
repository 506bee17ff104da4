"""`provision_log`: what the customer reads about the creation and deletion of an instance, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args
from uuid import UUID

from events import types as e
from events.failures import describe
from events.record import Append
from events.sql import Statements
from events.times import to_datetime
from projections.tables import Row, Table
from projections.versions import OneVersion

_TEARDOWN: Final[dict[e.TeardownStep, str]] = {
    "key_revoked": "The agent's key is revoked",
    "drained": "Open conversations have ended",
    "server_deleted": "The server is deleted",
    "absence_verified": "The provider confirms that no server is left",
    "artifacts_deleted": "Working data is removed",
    "addresses_freed": "Hostname and address are released",
}


_HEALTH: Final[dict[e.Health, str]] = {
    "healthy": "The agent is healthy",
    "late": "The agent's heartbeat is late",
    "unreachable": "The agent is unreachable",
}
_REVOKED: Final[dict[e.RevocationReason, str]] = {
    "rotation": "The agent's key was revoked; the agent gets a new one",
    "deletion": "The agent's key was revoked for the deletion",
}


class Line(NamedTuple):
    level: e.Level
    stage: str | None
    message: str


Lines = Mapping[type[e.Event], Callable[[Any], Line | None]]
"""The line that an event of each type adds to the customer's log, or None."""


def always(level: e.Level, stage: str | None, message: str) -> Callable[[Any], Line]:
    line = Line(level, stage, message)
    return lambda _event: line


def _nothing(_event: e.AnyEvent) -> None:
    pass


def _placement_chosen(event: e.PlacementChosen) -> Line:
    where = f"{event.server_type} at {event.location} ({event.provider})"
    return Line("info", "placement", f"Attempt {event.attempt}: {where}")


def _health_changed(event: e.HealthChanged) -> Line:
    return Line("info" if event.health == "healthy" else "warning", None, _HEALTH[event.health])


def _consent_changed(event: e.ConsentChanged) -> Line:
    return Line("info", None, f"Staff may {'now' if event.granted else 'no longer'} read the conversations")


def _updates_requested(event: e.UpdatesRequested) -> Line:
    how = " with a restart" if event.restart else ""
    what = f"The agent is asked to apply configuration {event.config_version}{how}"
    return Line("info", None, f"{what}; the outcome is not known yet")


def _updates_applied(event: e.UpdatesApplied) -> Line:
    how = "applied with a restart" if event.restarted else "applied"
    return Line("info", None, f"Configuration {event.config_version} was {how}")


def _updates_failed(event: e.UpdatesFailed) -> Line:
    outcome = "was not applied" if event.nothing_done else "may or may not have been applied"
    return Line("warning", None, f"Configuration {event.config_version} {outcome}: {describe(event.code)}")


def _conversations_accessed(event: e.ConversationsAccessed) -> Line:
    what = "the conversations" if event.conversation_id is None else f"conversation {event.conversation_id}"
    return Line("info", None, f"Staff read {what}")


def _teardown_blocked(event: e.TeardownBlocked) -> Line:
    return Line("warning", "deleting", f"Deletion is delayed, and HydraCore keeps trying: {describe(event.code)}")


_CONFIGURED = always("info", None, "The configuration was changed")

#: A table, because a rebuild looks up millions of events, and a `match` of thirty patterns would cost more than all
#: else.
LINES: Final[Lines] = {
    e.InstanceRequested: always("info", "queued", "Your agent is queued"),
    e.PlacementChosen: _placement_chosen,
    e.AddressReserved: lambda event: Line("info", "network", f"Hostname {event.hostname} is reserved"),
    e.ServerIntended: always("info", "server_intended", "Asking the provider for a server"),
    e.ServerCreated: always("info", "server_created", "The provider has created the server"),
    e.ServerObserved: lambda event: Line("info", "server_running", f"The server is {event.server_status}"),
    e.AttemptFailed: lambda event: Line("warning", None, f"Attempt {event.attempt} failed: {describe(event.code)}"),
    e.ServerDiscarded: lambda event: Line(
        "info", None, f"Attempt {event.attempt} is cleaned up: no server of it is left"
    ),
    e.ProvisioningFailed: lambda event: Line("error", None, f"Provisioning failed: {describe(event.code)}"),
    e.AgentEnrolled: always("info", "bootstrapping", "The agent has made contact"),
    e.EnrolmentContested: always(
        "error", "bootstrapping", "Another client tried to enrol as this agent; it was refused"
    ),
    e.AgentKeyIssued: _nothing,
    e.AgentKeyAcknowledged: _nothing,
    e.AgentKeyRevoked: lambda event: Line("info", None, _REVOKED[event.reason]),
    e.BootstrapReported: lambda event: Line(event.level, event.stage, event.message),
    e.InstanceReady: always("info", "ready", "Your agent is running"),
    e.HealthChanged: _health_changed,
    e.ServerVanished: always("error", None, describe("server_vanished")),
    e.ConfigChanged: _CONFIGURED,
    e.PlatformConfigPatched: _CONFIGURED,
    e.ModelPolicyChanged: _CONFIGURED,
    e.ConsentChanged: _consent_changed,
    e.UpdatesRequested: _updates_requested,
    e.UpdatesApplied: _updates_applied,
    e.UpdatesFailed: _updates_failed,
    e.ConversationsAccessed: _conversations_accessed,
    e.UsageRecorded: _nothing,
    e.DeletionRequested: always("info", "deleting", "Deletion requested"),
    e.TeardownStepDone: lambda event: Line("info", "deleting", _TEARDOWN[event.step]),
    e.TeardownBlocked: _teardown_blocked,
    e.InstanceDeleted: always("info", "deleted", "Your agent is deleted; nothing is left of it"),
    e.CustomerErased: always("info", None, "The customer's personal data was erased"),
}

assert set(LINES) == set(get_args(e.AnyEvent)), "every event of the union has its line, or says nothing"


def rows_of(
    events: Sequence[e.AnyEvent], *, stream_id: UUID, lane: int, version_before: int, lines: Lines = LINES
) -> list[dict[str, Any]]:
    """The rows for `events`, which follow `version_before` in the stream."""
    rows = _rows_of(events, lines, stream_id=stream_id, lane=lane, version_before=version_before)
    return [dict(zip(_NAMES, row, strict=True)) for row in rows]


def _rows_of(
    events: Sequence[e.AnyEvent], lines: Lines, *, stream_id: UUID, lane: int, version_before: int
) -> Iterator[Row]:
    """The same, with values in the order of the table's columns."""
    for version, event in enumerate(events, start=version_before + 1):
        line = lines[type(event)](event)
        if line is not None:
            yield (lane, stream_id, version, *line, to_datetime(event.at_ms))


_TABLE = Table(
    "provision_log",
    key=("lane", "instance_id", "seq"),
    columns=("lane", "instance_id", "seq", "level", "stage", "message", "created_at"),
    stream="instance_id",
    version="seq",
    changed=("message",),
)

#: The columns as the statement of an append names them.
_NAMES = ("lane", "id", "version", "level", "stage", "message", "created_at")


class ProvisionLogFold:
    def __init__(self, stream_id: UUID, lines: Lines, *, lane: int) -> None:
        self._id = stream_id
        self._lines = lines
        self._lane = lane
        self._version = 0
        self._rows: list[Row] = []

    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        self._rows += _rows_of(events, self._lines, stream_id=self._id, lane=self._lane, version_before=self._version)
        self._version += len(events)

    def rows(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows

    def weight(self) -> int:
        return 0  # Rows that were returned are not kept.


class ProvisionLogProjection(OneVersion):
    """Adds lines, and never changes one."""

    name = "provision_log"
    version = 2
    tables = (_TABLE,)
    ddl = Statements("projections", "provision_log.sql")
    statement = Statements("projections", "inline.sql")["provision_log"]
    lines = LINES

    def begin(self, stream_id: UUID, *, lane: int) -> ProvisionLogFold:
        return ProvisionLogFold(stream_id, self.lines, lane=lane)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        rows = rows_of(
            append.events,
            stream_id=append.stream_id,
            lane=append.lane,
            version_before=append.expected_version,
            lines=self.lines,
        )
        return [{**row, "command_id": append.origin.command_id} for row in rows]
