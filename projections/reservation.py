"""`reservation`: what must be unique across lanes, and since when it is free again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Never, get_args
from uuid import UUID

from events import types as e
from events.record import Append
from events.sql import Statements
from events.state import Instance
from events.times import moment
from projections.tables import Row, Table
from projections.versions import OneVersion

#: The events that say nothing of what is held.
_Silent = (
    e.ServerIntended
    | e.ServerObserved
    | e.AttemptFailed
    | e.ProvisioningFailed
    | e.AgentEnrolled
    | e.EnrolmentContested
    | e.AgentKeyIssued
    | e.AgentKeyAcknowledged
    | e.AgentKeyRevoked
    | e.BootstrapReported
    | e.InstanceReady
    | e.HealthChanged
    | e.ConfigChanged
    | e.PlatformConfigPatched
    | e.ModelPolicyChanged
    | e.ConsentChanged
    | e.UpdatesRequested
    | e.UpdatesApplied
    | e.UpdatesFailed
    | e.ConversationsAccessed
    | e.UsageRecorded
    | e.DeletionRequested
    | e.TeardownBlocked
    | e.InstanceDeleted
    | e.CustomerErased
)
_SILENT_TYPES = frozenset[type[e.AnyEvent]](get_args(_Silent))


class Taken(NamedTuple):
    """A value that an instance takes or, where `reserved_ms` is None, gives back."""

    version: int
    kind: str
    value: str
    reserved_ms: int | None
    released_ms: int | None


class Holding:
    """What an instance has of the things that must be unique, as far as its events have been followed."""

    def __init__(self, state: Instance | None = None) -> None:
        attempt = None if state is None else state.attempt
        self._version = 0 if state is None else state.version
        self._server = None if attempt is None else (attempt.provider, attempt.server_id)
        self._addresses = None if state is None else (state.hostname, state.vpn_ip)

    def follow(self, events: Iterable[e.AnyEvent]) -> Iterator[Taken]:
        """What the instance's next events take and give back, in order."""
        for version, event in enumerate(events, self._version + 1):
            self._version = version
            # Most events are of these types, and trying all patterns in turn would cost a rebuild more than all else.
            if type(event) not in _SILENT_TYPES:
                yield from self._follow(version, event)

    def _follow(self, version: int, event: e.AnyEvent) -> Iterator[Taken]:
        match event:
            case e.InstanceRequested():
                key = idempotency_value(event.tenant_id, event.customer_id, event.idempotency_key)
                yield Taken(version, "idempotency_key", key, event.at_ms, None)
            case e.PlacementChosen():
                self._server = (event.provider, None)
            case e.AddressReserved():
                self._addresses = (event.hostname, event.vpn_ip)
                yield from self._each_address(version, event.at_ms, None)
            case e.ServerCreated():
                assert self._server is not None, "a placement comes before a server"
                self._server = (self._server[0], event.server_id)
                yield from self._each_server(version, event.at_ms, None)
            case e.ServerDiscarded() | e.ServerVanished() | e.TeardownStepDone(step="absence_verified"):
                yield from self._each_server(version, None, event.at_ms)
            case e.TeardownStepDone(step="addresses_freed"):
                yield from self._each_address(version, None, event.at_ms)
            case e.TeardownStepDone():
                pass
            case _:
                _assert_silent(event)

    def _each_server(self, version: int, reserved_ms: int | None, released_ms: int | None) -> Iterator[Taken]:
        provider, server_id = self._server or (None, None)
        if server_id is not None:
            yield Taken(version, "provider_id", f"{provider}/{server_id}", reserved_ms, released_ms)

    def _each_address(self, version: int, reserved_ms: int | None, released_ms: int | None) -> Iterator[Taken]:
        hostname, vpn_ip = self._addresses or (None, None)
        if hostname is not None and vpn_ip is not None:
            yield Taken(version, "hostname", hostname, reserved_ms, released_ms)
            yield Taken(version, "vpn_ip", vpn_ip, reserved_ms, released_ms)


def _assert_silent(event: _Silent) -> Never:
    """Fails type checking where an event has neither a case of its own nor a place among the silent ones."""
    raise AssertionError(f"{type(event).__name__} is passed over before")


def rows_of(
    events: Sequence[e.AnyEvent], *, before: Instance | None, stream_id: UUID, lane: int
) -> list[dict[str, Any]]:
    """The reservations that `events` take or release, behind the state `before` them."""
    return [
        {
            "lane": lane,
            "id": stream_id,
            "version": taken.version,
            "kind": taken.kind,
            "value": taken.value,
            "reserved_at": moment(taken.reserved_ms),
            "released_at": moment(taken.released_ms),
        }
        for taken in Holding(before).follow(events)
    ]


def idempotency_value(tenant_id: str, customer_id: str, key: str) -> str:
    """Tenant, customer and key as one text that no other triple gives.

    The last part has no length (unlike in `events.ids.framed`): it needs none, and the tables hold such values.
    """
    return f"{len(tenant_id)}:{tenant_id}{len(customer_id)}:{customer_id}{key}"


_TABLE = Table(
    "reservation",
    key=("kind", "value", "instance_id"),
    columns=("kind", "value", "instance_id", "version", "reserved_at", "released_at"),
    stream="instance_id",
    version="version",
    laned=False,
)


class ReservationFold:
    def __init__(self, stream_id: UUID) -> None:
        self._id = stream_id
        self._holding = Holding()
        #: Version, time of taking and time of release, by kind and value.
        self._held: dict[tuple[str, str], tuple[int, datetime | None, datetime | None]] = {}
        #: In the order in which they changed.
        self._changed: dict[tuple[str, str], None] = {}

    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        held = self._held
        for version, kind, value, reserved_ms, released_ms in self._holding.follow(events):
            key, released_at = (kind, value), moment(released_ms)
            known = held.get(key)
            reserved_at = (moment(reserved_ms) or released_at) if known is None else known[1]
            held[key] = (version, reserved_at, released_at)
            self._changed[key] = None

    def rows(self) -> list[Row]:
        rows = [(*key, self._id, *self._held[key]) for key in self._changed]
        self._changed.clear()
        return rows

    def weight(self) -> int:
        return 0  # No value that is reserved is large.


class ReservationProjection(OneVersion):
    """Takes and releases values. A value that another instance holds breaks the append (`ReservationTaken`)."""

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
