"""An instance as `GET /v1/instances/{id}` shows it: from its row, or from an earlier state."""

from __future__ import annotations

from events.failures import describe
from events.ids import lane_of
from events.state import Instance
from hydracore.api import schemas as s
from hydracore.audit.timestamps import time_text
from projections.instance import row_of
from projections.queries import InstanceRow


def detail_of(row: InstanceRow) -> s.InstanceDetail:
    return s.InstanceDetail(
        agent_name=row.agent_name,
        created_at=row.created_at,
        hostname=row.hostname,
        id=row.id,
        ip_address=row.ip_address,
        preset_id=row.preset_id,
        provider=row.provider,
        region_id=row.region_id,
        runtime_type=row.runtime_type,
        status=row.status,
        workload_type=row.workload_type,
        callback_seq=row.bootstrap_seq,
        callback_stage=row.bootstrap_stage,
        capabilities=row.capabilities,
        error_message=describe(row.error_code) if row.error_code else None,
        health_status=row.health_status,
        provisioning_stage=row.provisioning_stage,
        server_type_plan=row.server_type,
        updated_at=row.updated_at,
        vpn_ip=row.vpn_ip,
        customer_id=row.customer_id,
        tenant_id=row.tenant_id,
    )


def row_at(state: Instance) -> InstanceRow:
    """The row of the read table for `state`. Raises `LogCorrupted` where one of its times is outside the calendar."""
    row = row_of(state, lane=lane_of(state.id))
    row |= {"key": state.id, "id": str(state.id)}
    row |= {name: time_text(row[name]) for name in ("created_at", "updated_at")}
    return InstanceRow(**{name: row[name] for name in InstanceRow.__struct_fields__})
