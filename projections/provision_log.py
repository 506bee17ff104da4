"""`provision_log`: what a customer is told about the making and unmaking of an instance, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, assert_never
from uuid import UUID

from events import types as e
from events.failures import describe
from events.record import Append
from events.sql import Statements
from projections.instance import moment
from projections.tables import Row, Table
from projections.versions import OneVersion

_TEARDOWN = {
    "key_revoked": "The agent's key is revoked",
    "drained": "Open conversations have ended",
    "server_deleted": "The server is deleted",
    "absence_verified": "The provider confirms that no server is left",
    "artifacts_deleted": "Working data is removed",
    "addresses_freed": "Hostname and address are released",
}


class Line(NamedTuple):
    level: str
    stage: str | None
    message: str


def line_of(event: e.AnyEvent) -> Line | None:
    """What `event` says to the customer, or None where it says nothing."""
    match event:
        case e.InstanceRequested():
            return Line("info", "queued", "Your agent is queued")
        case (
            e.PlacementChosen()
            | e.AddressReserved()
            | e.ServerIntended()
            | e.ServerCreated()
            | e.ServerObserved()
            | e.AttemptFailed()
            | e.ServerDiscarded()
            | e.ProvisioningFailed()
        ):
            return _server_line(event)
        case e.AgentEnrolled():
            return Line("info", "bootstrapping", "The agent has made contact")
        case e.EnrolmentContested():
            return Line("error", "bootstrapping", "Somebody else tried to enrol as this agent")
        case e.AgentKeyIssued() | e.AgentKeyAcknowledged():
            return None
        case e.AgentKeyRevoked():
            return Line("info", None, f"The agent's key was revoked ({event.reason})")
        case e.BootstrapReported():
            return Line(event.level, event.stage, event.message)
        case e.InstanceReady():
            return Line("info", "ready", "Your agent is running")
        case e.HealthChanged():
            return Line("info" if event.health == "healthy" else "warning", None, f"The agent is {event.health}")
        case e.ServerVanished():
            return Line("error", None, "The server is gone from the provider")
        case (
            e.ConfigChanged()
            | e.PlatformConfigPatched()
            | e.ModelPolicyChanged()
            | e.ConsentChanged()
            | e.UpdatesApplied()
            | e.ConversationsAccessed()
            | e.UsageRecorded()
        ):
            return _use_line(event)
        case e.DeletionRequested() | e.TeardownStepDone() | e.TeardownBlocked() | e.InstanceDeleted():
            return _teardown_line(event)
        case e.CustomerErased():
            return Line("info", None, "The customer's personal data was erased")
        case _:
            assert_never(event)


def _server_line(
    event: e.PlacementChosen
    | e.AddressReserved
    | e.ServerIntended
    | e.ServerCreated
    | e.ServerObserved
    | e.AttemptFailed
    | e.ServerDiscarded
    | e.ProvisioningFailed,
) -> Line:
    match event:
        case e.PlacementChosen():
            where = f"{event.server_type} at {event.location} ({event.provider})"
            return Line("info", "placement", f"Attempt {event.attempt}: {where}")
        case e.AddressReserved():
            return Line("info", "network", f"Reserved {event.hostname}")
        case e.ServerIntended():
            return Line("info", "server_intended", "Asking the provider for a server")
        case e.ServerCreated():
            return Line("info", "server_created", "The provider has made the server")
        case e.ServerObserved():
            return Line("info", "server_running", f"The server is {event.server_status}")
        case e.AttemptFailed():
            return Line("warning", None, f"Attempt {event.attempt} failed: {describe(event.code)}")
        case e.ServerDiscarded():
            return Line("info", None, f"Nothing is left of attempt {event.attempt}")
        case e.ProvisioningFailed():
            return Line("error", None, f"Provisioning failed: {describe(event.code)}")


def _use_line(
    event: e.ConfigChanged
    | e.PlatformConfigPatched
    | e.ModelPolicyChanged
    | e.ConsentChanged
    | e.UpdatesApplied
    | e.ConversationsAccessed
    | e.UsageRecorded,
) -> Line | None:
    match event:
        case e.ConfigChanged() | e.PlatformConfigPatched() | e.ModelPolicyChanged():
            return Line("info", None, "The configuration was changed")
        case e.ConsentChanged():
            return Line(
                "info", None, f"Reading conversations was {'allowed' if event.granted else 'forbidden'} to staff"
            )
        case e.UpdatesApplied():
            how = "applied with a restart" if event.restarted else "applied"
            return Line("info", None, f"Configuration {event.config_version} was {how}")
        case e.ConversationsAccessed():
            what = "the conversations" if event.conversation_id is None else f"conversation {event.conversation_id}"
            return Line("info", None, f"Staff read {what}")
        case e.UsageRecorded():
            return None


def _teardown_line(
    event: e.DeletionRequested | e.TeardownStepDone | e.TeardownBlocked | e.InstanceDeleted,
) -> Line:
    match event:
        case e.DeletionRequested():
            return Line("info", "deleting", "Deletion requested")
        case e.TeardownStepDone():
            return Line("info", "deleting", _TEARDOWN[event.step])
        case e.TeardownBlocked():
            return Line("warning", "deleting", f"Deletion waits: {describe(event.code)}")
        case e.InstanceDeleted():
            return Line("info", "deleted", "Your agent is deleted; nothing is left of it")


def rows_of(events: Sequence[e.AnyEvent], *, stream_id: UUID, lane: int, version_before: int) -> list[dict[str, Any]]:
    """The lines that `events`, the stream's next ones after `version_before`, add."""
    rows: list[dict[str, Any]] = []
    for version, event in enumerate(events, start=version_before + 1):
        line = line_of(event)
        if line is not None:
            rows.append(
                {
                    "lane": lane,
                    "id": stream_id,
                    "version": version,
                    "level": line.level,
                    "stage": line.stage,
                    "message": line.message,
                    "created_at": moment(event.at_ms),
                }
            )
    return rows


_TABLE = Table(
    "provision_log",
    key=("lane", "instance_id", "seq"),
    columns=("lane", "instance_id", "seq", "level", "stage", "message", "created_at"),
    stream="instance_id",
)


class ProvisionLogFold:
    def __init__(self, stream_id: UUID, *, lane: int) -> None:
        self._id = stream_id
        self._lane = lane
        self._version = 0
        self._rows: list[Row] = []

    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        rows = rows_of(events, stream_id=self._id, lane=self._lane, version_before=self._version)
        self._rows += (tuple(row.values()) for row in rows)
        self._version += len(events)

    def rows(self) -> list[Row]:
        return self._rows


class ProvisionLogProjection(OneVersion):
    """Adds lines; none is ever changed."""

    name = "provision_log"
    version = 1
    tables = (_TABLE,)
    ddl = Statements("projections", "provision_log.sql")
    statement = Statements("projections", "inline.sql")["provision_log"]

    def begin(self, stream_id: UUID, *, lane: int) -> ProvisionLogFold:
        return ProvisionLogFold(stream_id, lane=lane)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        lines = rows_of(
            append.events, stream_id=append.stream_id, lane=append.lane, version_before=append.expected_version
        )
        return [{**line, "command_id": append.origin.command_id} for line in lines]
