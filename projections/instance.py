"""`instance`: one row per instance, the state of its stream as the API serves it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from events.record import Append
from events.saga import wake_at_ms
from events.sql import Statements
from events.state import Instance

VERSION = 1


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


class InstanceProjection:
    """Writes the newest row; an older one never replaces it."""

    statement = Statements("projections", "inline.sql")["instance"]

    def rows(self, append: Append) -> list[dict[str, Any]]:
        return [{**row_of(append.after, lane=append.lane), "command_id": append.origin.command_id}]
