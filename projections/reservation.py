"""`reservation`: values that must be unique across lanes, and since when each is free again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, get_args
from uuid import UUID

import msgspec

from events import types as e
from events.record import Append
from events.sql import Statements
from events.state import Instance
from events.times import to_datetime
from projections.tables import Row, Table
from projections.versions import OneVersion


class ReservationChange(msgspec.Struct, frozen=True):
    """A value that an instance reserves at `reserved_ms` or, where that is None, releases at `released_ms`."""

    version: int
    kind: str
    value: str
    reserved_ms: int | None
    released_ms: int | None


class HeldValues:
    """The unique values that an instance holds, as far as its events were applied."""

    def __init__(self, state: Instance | None = None) -> None:
        attempt = None if state is None else state.attempt
        self._version = 0 if state is None else state.version
        self._server = None if attempt is None else (attempt.provider, attempt.server_id)
        self._addresses = None if state is None else (state.hostname, state.vpn_ip)

    def apply(self, events: Iterable[e.AnyEvent]) -> Iterator[ReservationChange]:
        """What the instance's next events reserve and release, in order."""
        for version, event in enumerate(events, self._version + 1):
            self._version = version
            handle = _HANDLERS[type(event)]
            if handle is not None:
                yield from handle(self, version, event)

    def requested(self, version: int, event: e.InstanceRequested) -> tuple[ReservationChange, ...]:
        key = idempotency_value(event.tenant_id, event.customer_id, event.idempotency_key)
        return (ReservationChange(version, "idempotency_key", key, event.at_ms, None),)

    def placement_chosen(self, _version: int, event: e.PlacementChosen) -> tuple[ReservationChange, ...]:
        self._server = (event.provider, None)
        return ()

    def address_reserved(self, version: int, event: e.AddressReserved) -> tuple[ReservationChange, ...]:
        self._addresses = (event.hostname, event.vpn_ip)
        return self._address_changes(version, event.at_ms, None)

    def server_created(self, version: int, event: e.ServerCreated) -> tuple[ReservationChange, ...]:
        assert self._server is not None, "a placement comes before a server"
        self._server = (self._server[0], event.server_id)
        return self._server_changes(version, event.at_ms, None)

    def server_gone(self, version: int, event: e.ServerDiscarded | e.ServerVanished) -> tuple[ReservationChange, ...]:
        return self._server_changes(version, None, event.at_ms)

    def teardown_step_done(self, version: int, event: e.TeardownStepDone) -> tuple[ReservationChange, ...]:
        match event.step:
            case "absence_verified":
                return self._server_changes(version, None, event.at_ms)
            case "addresses_freed":
                return self._address_changes(version, None, event.at_ms)
            case _:
                return ()

    def _server_changes(
        self, version: int, reserved_ms: int | None, released_ms: int | None
    ) -> tuple[ReservationChange, ...]:
        provider, server_id = self._server or (None, None)
        if server_id is None:
            return ()
        return (ReservationChange(version, "provider_id", f"{provider}/{server_id}", reserved_ms, released_ms),)

    def _address_changes(
        self, version: int, reserved_ms: int | None, released_ms: int | None
    ) -> tuple[ReservationChange, ...]:
        hostname, vpn_ip = self._addresses or (None, None)
        if hostname is None or vpn_ip is None:
            return ()
        return (
            ReservationChange(version, "hostname", hostname, reserved_ms, released_ms),
            ReservationChange(version, "vpn_ip", vpn_ip, reserved_ms, released_ms),
        )


#: By type of event; None for events that change no reservation. A table, because a rebuild looks up millions of events,
#: and a `match` would cost more than all else.
_HANDLERS: Final[dict[type[e.Event], Callable[[HeldValues, int, Any], tuple[ReservationChange, ...]] | None]] = {
    e.InstanceRequested: HeldValues.requested,
    e.PlacementChosen: HeldValues.placement_chosen,
    e.AddressReserved: HeldValues.address_reserved,
    e.ServerIntended: None,
    e.ServerCreated: HeldValues.server_created,
    e.ServerObserved: None,
    e.AttemptFailed: None,
    e.ServerDiscarded: HeldValues.server_gone,
    e.ProvisioningFailed: None,
    e.AgentEnrolled: None,
    e.EnrolmentContested: None,
    e.AgentKeyIssued: None,
    e.AgentKeyAcknowledged: None,
    e.AgentKeyRevoked: None,
    e.BootstrapReported: None,
    e.InstanceReady: None,
    e.HealthChanged: None,
    e.ServerVanished: HeldValues.server_gone,
    e.ConfigChanged: None,
    e.PlatformConfigPatched: None,
    e.ModelPolicyChanged: None,
    e.ConsentChanged: None,
    e.UpdatesRequested: None,
    e.UpdatesApplied: None,
    e.UpdatesFailed: None,
    e.ConversationsAccessed: None,
    e.UsageRecorded: None,
    e.DeletionRequested: None,
    e.TeardownStepDone: HeldValues.teardown_step_done,
    e.TeardownBlocked: None,
    e.InstanceDeleted: None,
    e.CustomerErased: None,
}

assert set(_HANDLERS) == set(get_args(e.AnyEvent)), "every event of the union has a handler, or None"


def rows_of(
    events: Sequence[e.AnyEvent], *, before: Instance | None, stream_id: UUID, lane: int
) -> list[dict[str, Any]]:
    """The reservations that `events` make or release, after the state `before` them."""
    return [
        {
            "lane": lane,
            "id": stream_id,
            "version": change.version,
            "kind": change.kind,
            "value": change.value,
            "reserved_at": to_datetime(change.reserved_ms),
            "released_at": to_datetime(change.released_ms),
        }
        for change in HeldValues(before).apply(events)
    ]


def idempotency_value(tenant_id: str, customer_id: str, key: str) -> str:
    """Tenant, customer and key as one text that no other triple gives.

    The key has no length prefix (unlike parts in `events.ids.length_prefixed`): as the last part it needs none, and the tables
    hold such values.
    """
    return f"{len(tenant_id)}:{tenant_id}{len(customer_id)}:{customer_id}{key}"


_TABLE = Table(
    "reservation",
    key=("kind", "value", "instance_id"),
    columns=("kind", "value", "instance_id", "version", "reserved_at", "released_at"),
    stream="instance_id",
    version="version",
    has_lane=False,
)


class ReservationFold:
    def __init__(self, stream_id: UUID) -> None:
        self._id = stream_id
        self._held_values = HeldValues()
        #: Version, time of reservation and time of release, by kind and value.
        self._held: dict[tuple[str, str], tuple[int, datetime | None, datetime | None]] = {}
        #: The changed values, in the order in which they changed.
        self._changed: dict[tuple[str, str], None] = {}

    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        held = self._held
        for change in self._held_values.apply(events):
            key, released_at = (change.kind, change.value), to_datetime(change.released_ms)
            known = held.get(key)
            reserved_at = (to_datetime(change.reserved_ms) or released_at) if known is None else known[1]
            held[key] = (change.version, reserved_at, released_at)
            self._changed[key] = None

    def rows(self) -> list[Row]:
        rows = [(*key, self._id, *self._held[key]) for key in self._changed]
        self._changed.clear()
        return rows

    def weight(self) -> int:
        return 0  # No reserved value is large.


class ReservationProjection(OneVersion):
    """Reserves and releases values. A value that another instance holds fails the append (`ReservationTaken`)."""

    name = "reservation"
    version = 1
    tables = (_TABLE,)
    ddl = Statements("projections", "reservation.sql")
    statement = Statements("projections", "inline.sql")["reservation"]

    def begin(self, stream_id: UUID, *, lane: int) -> ReservationFold:  # noqa: ARG002 - the table has no lanes
        return ReservationFold(stream_id)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        rows = rows_of(append.events, before=append.before, stream_id=append.stream_id, lane=append.lane)
        return [{**row, "command_id": append.origin.command_id} for row in rows]
