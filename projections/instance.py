"""`instance`: one row per instance, the state of its stream as the API serves it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from events.evolve import evolve_all
from events.record import Append
from events.saga import wake_at_ms
from events.sql import Statements
from events.state import Attempt, Instance
from events.types import AnyEvent
from projections.tables import Row, Table
from projections.versions import OneVersion


def row_of(state: Instance, *, lane: int) -> dict[str, Any]:
    """The row for `state`; keys are the table's columns. Pure: the same for an append, a replay and a rebuild."""
    return dict(zip(_TABLE.columns, _values_of(state, lane), strict=True))


def _values_of(state: Instance, lane: int) -> Row:
    """The row's values, in the order of the table's columns."""
    attempt, agent = state.attempt, state.agent
    return (
        *(lane, state.id, state.version, state.tenant_id, state.customer_id, state.idempotency_key, state.status),
        *(state.provisioning_stage, state.region_id, state.tier_id, state.tier_name, state.preset_id),
        *(state.runtime_type, state.workload_type, state.capabilities, state.agent_name, state.customer_email),
        *(state.hostname, state.vpn_ip),
        *((None, None, None, None, None, 0, None) if attempt is None else _of_attempt(attempt)),
        *((None, None, None) if agent is None else (agent.bootstrap_stage, agent.bootstrap_seq, agent.key_hash)),
        *(state.health, state.error_code, moment(state.created_ms), moment(state.updated_ms)),
        *(moment(wake_at_ms(state)), moment(state.deleted_ms)),
    )


def _of_attempt(attempt: Attempt) -> Row:
    return (
        *(attempt.ipv4, attempt.provider, attempt.server_type, attempt.location, attempt.server_id),
        *(attempt.number, attempt.action_id),
    )


def moment(at_ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a UTC datetime."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


_TABLE = Table(
    "instance",
    key=("lane", "id"),
    columns=(
        *("lane", "id", "version", "tenant_id", "customer_id", "idempotency_key", "status", "provisioning_stage"),
        *("region_id", "tier_id", "tier_name", "preset_id", "runtime_type", "workload_type", "capabilities"),
        *("agent_name", "customer_email", "hostname", "vpn_ip"),
        *("ip_address", "provider", "server_type", "location", "server_id", "attempt", "pending_action_id"),
        *("bootstrap_stage", "bootstrap_seq", "agent_key_hash"),
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
        self._state = evolve_all(self._state, events, stream_id=self._id)

    def rows(self) -> list[Row]:
        assert self._state is not None, "a stream has events"
        return [_values_of(self._state, self._lane)]


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
