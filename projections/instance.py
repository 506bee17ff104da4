"""`instance`: one row per instance, the state of its stream as the API serves it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from events.evolve import evolve
from events.record import Append
from events.saga import wake_at_ms
from events.sql import Statements
from events.state import Instance
from events.types import AnyEvent
from projections.tables import Row, Table
from projections.versions import OneVersion


def row_of(state: Instance, *, lane: int) -> dict[str, Any]:
    """The row for `state`; keys are the table's columns. Pure: the same for an append, a replay and a rebuild."""
    attempt, agent = state.attempt, state.agent
    return {
        "lane": lane,
        "id": state.id,
        "version": state.version,
        "tenant_id": state.tenant_id,
        "customer_id": state.customer_id,
        "idempotency_key": state.idempotency_key,
        "status": state.status,
        "provisioning_stage": state.provisioning_stage,
        "region_id": state.region_id,
        "tier_id": state.tier_id,
        "tier_name": state.tier_name,
        "preset_id": state.preset_id,
        "runtime_type": state.runtime_type,
        "workload_type": state.workload_type,
        "capabilities": state.capabilities,
        "agent_name": state.agent_name,
        "customer_email": state.customer_email,
        "hostname": state.hostname,
        "vpn_ip": state.vpn_ip,
        "ip_address": None if attempt is None else attempt.ipv4,
        "provider": None if attempt is None else attempt.provider,
        "server_type": None if attempt is None else attempt.server_type,
        "location": None if attempt is None else attempt.location,
        "server_id": None if attempt is None else attempt.server_id,
        "attempt": 0 if attempt is None else attempt.number,
        "pending_action_id": None if attempt is None else attempt.action_id,
        "bootstrap_stage": None if agent is None else agent.bootstrap_stage,
        "bootstrap_seq": None if agent is None else agent.bootstrap_seq,
        "agent_key_hash": None if agent is None else agent.key_hash,
        "health_status": state.health,
        "error_code": state.error_code,
        "created_at": moment(state.created_ms),
        "updated_at": moment(state.updated_ms),
        "wake_at": moment(wake_at_ms(state)),
        "deleted_at": moment(state.deleted_ms),
    }


def moment(at_ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a UTC datetime."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


_TABLE = Table(
    "instance",
    key=("lane", "id"),
    columns=(
        *("lane", "id", "version", "tenant_id", "customer_id", "idempotency_key", "status", "provisioning_stage"),
        *("region_id", "tier_id", "tier_name", "preset_id", "runtime_type", "workload_type", "capabilities"),
        *("agent_name", "customer_email", "hostname", "vpn_ip", "ip_address", "provider", "server_type", "location"),
        *("server_id", "attempt", "pending_action_id", "bootstrap_stage", "bootstrap_seq", "agent_key_hash"),
        *("health_status", "error_code", "created_at", "updated_at", "wake_at", "deleted_at"),
    ),
    stream="id",
)


class InstanceFold:
    def __init__(self, stream_id: UUID, *, lane: int) -> None:
        self._id = stream_id
        self._lane = lane
        self._state: Instance | None = None

    def feed(self, events: Sequence[AnyEvent]) -> None:
        state, stream_id = self._state, self._id
        for event in events:
            state = evolve(state, event, stream_id=stream_id)
        self._state = state

    def rows(self) -> list[Row]:
        assert self._state is not None, "a stream has events"
        return [tuple(row_of(self._state, lane=self._lane).values())]


class InstanceProjection(OneVersion):
    """Writes the newest row; an older one never replaces it."""

    name = "instance"
    version = 1
    tables = (_TABLE,)
    ddl = Statements("projections", "instance.sql")
    statement = Statements("projections", "inline.sql")["instance"]

    def begin(self, stream_id: UUID, *, lane: int) -> InstanceFold:
        return InstanceFold(stream_id, lane=lane)

    def rows(self, append: Append) -> list[dict[str, Any]]:
        return [{**row_of(append.after, lane=append.lane), "command_id": append.origin.command_id}]
