"""`reservation`: what must be unique across lanes, and since when it is free again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from events import types as e
from events.evolve import evolve, evolve_all
from events.record import Append
from events.sql import Statements
from events.state import Instance
from projections.instance import moment
from projections.tables import Row, Table
from projections.versions import OneVersion


def rows_of(
    events: Sequence[e.AnyEvent], *, before: Instance | None, after: Instance, lane: int
) -> list[dict[str, Any]]:
    """The reservations that `events` take or release, between the states around them."""
    rows: list[dict[str, Any]] = []
    version = 0 if before is None else before.version
    provider = None if before is None or before.attempt is None else before.attempt.provider
    server_id = None if before is None or before.attempt is None else before.attempt.server_id

    def add(kind: str, value: str, *, reserved_ms: int | None = None, released_ms: int | None = None) -> None:
        rows.append(
            {
                "lane": lane,
                "id": after.id,
                "version": version,
                "kind": kind,
                "value": value,
                "reserved_at": moment(reserved_ms),
                "released_at": moment(released_ms),
            }
        )

    for event in events:
        version += 1
        match event:
            case e.InstanceRequested():
                key = idempotency_value(event.tenant_id, event.customer_id, event.idempotency_key)
                add("idempotency_key", key, reserved_ms=event.at_ms)
            case e.PlacementChosen():
                provider, server_id = event.provider, None
            case e.AddressReserved():
                add("hostname", event.hostname, reserved_ms=event.at_ms)
                add("vpn_ip", event.vpn_ip, reserved_ms=event.at_ms)
            case e.ServerCreated():
                server_id = event.server_id
                add("provider_id", f"{provider}/{server_id}", reserved_ms=event.at_ms)
            case e.ServerDiscarded() | e.ServerVanished() if server_id is not None:
                add("provider_id", f"{provider}/{server_id}", released_ms=event.at_ms)
            case e.TeardownStepDone(step="absence_verified") if server_id is not None:
                add("provider_id", f"{provider}/{server_id}", released_ms=event.at_ms)
            case e.TeardownStepDone(step="addresses_freed") if after.hostname is not None and after.vpn_ip is not None:
                add("hostname", after.hostname, released_ms=event.at_ms)
                add("vpn_ip", after.vpn_ip, released_ms=event.at_ms)
            case _:
                pass
    return rows


def idempotency_value(tenant_id: str, customer_id: str, key: str) -> str:
    """Tenant, customer and key as one text that no other triple gives."""
    return f"{len(tenant_id)}:{tenant_id}{len(customer_id)}:{customer_id}{key}"


_TABLE = Table(
    "reservation",
    key=("kind", "value", "instance_id"),
    columns=("kind", "value", "instance_id", "version", "reserved_at", "released_at"),
    stream="instance_id",
    laned=False,
)

#: Whose rows there can be any of: most events are of other types.
_RESERVING = frozenset(
    {e.InstanceRequested, e.AddressReserved, e.ServerCreated, e.ServerDiscarded, e.ServerVanished, e.TeardownStepDone}
)


class ReservationFold:
    def __init__(self, stream_id: UUID, *, lane: int) -> None:
        self._id = stream_id
        self._lane = lane
        self._state: Instance | None = None
        #: Version, time of taking and time of release, by kind and value.
        self._held: dict[tuple[str, str], tuple[int, datetime, datetime | None]] = {}

    def feed(self, events: Sequence[e.AnyEvent]) -> None:
        start = 0
        for at, event in enumerate(events):
            if type(event) in _RESERVING:
                before = evolve_all(self._state, events[start:at], stream_id=self._id)
                self._state = evolve(before, event, stream_id=self._id)
                self._hold(rows_of((event,), before=before, after=self._state, lane=self._lane))
                start = at + 1
        self._state = evolve_all(self._state, events[start:], stream_id=self._id)

    def _hold(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            key = (row["kind"], row["value"])
            known = self._held.get(key)
            reserved_at = (row["reserved_at"] or row["released_at"]) if known is None else known[1]
            self._held[key] = (row["version"], reserved_at, row["released_at"])

    def rows(self) -> list[Row]:
        return [(*key, self._id, *held) for key, held in self._held.items()]


class ReservationProjection(OneVersion):
    """Takes and releases values. A value that another instance holds breaks the append (`ReservationTaken`)."""

    name = "reservation"
    version = 1
    tables = (_TABLE,)
    ddl = Statements("projections", "reservation.sql")
    statement = Statements("projections", "inline.sql")["reservation"]

    def begin(self, stream_id: UUID, *, lane: int) -> ReservationFold:
        return ReservationFold(stream_id, lane=lane)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        rows = rows_of(append.events, before=append.before, after=append.after, lane=append.lane)
        return [{**row, "command_id": append.origin.command_id} for row in rows]
