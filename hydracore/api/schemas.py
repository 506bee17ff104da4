"""The bodies of the contract: requests and answers. Fields are in the contract's order.

Ids and times that are only shown are texts, because the database returns them as texts.
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from events.ids import VERSION_MAX
from hydracore.audit.history_rendering import HistoryEvent
from hydracore.auth import ID_PATTERN
from hydracore.catalogue_file import DEFAULT_PRESET


def undocumented(**bounds: Any) -> Meta:
    """Bounds that are enforced but not in the OpenAPI document: the contract has none, and these only prevent abuse."""
    return Meta(**bounds, extra_json_schema={"x-undocumented": True})


#: Names and references. Longer ones are of no use, and the log keeps them for ever.
Text = Annotated[str, undocumented(max_length=10_000)]
Slugs = Annotated[list[Text], undocumented(max_length=1_000, extra={"check": "workflow_slugs"})]
CustomerId = Annotated[str, undocumented(pattern=ID_PATTERN)]
#: Any text without control characters.
ON_ONE_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
#: 255 characters fit every index.
IdempotencyKey = Annotated[str, undocumented(min_length=1, max_length=255, pattern=ON_ONE_LINE)]

UuidText = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
TimeText = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
RuntimeType = Annotated[str, Meta(examples=["expressclaw", "openclaw"])]
WorkloadType = Annotated[str, Meta(examples=["agent", "website"])]

#: A time in a query. The named check refuses other texts.
Time = Annotated[str, Meta(extra={"check": "time"}, extra_json_schema={"format": "date-time"})]
Version = Annotated[int, Meta(ge=1, le=VERSION_MAX)]


class ValidationError(msgspec.Struct, frozen=True):
    loc: list[str | int]
    msg: str
    type: str


class HTTPValidationError(msgspec.Struct, frozen=True):
    detail: list[ValidationError]


class HTTPError(msgspec.Struct, frozen=True):
    detail: str


class CreateInstance(msgspec.Struct, frozen=True, kw_only=True):
    agent_name: Text | None = None
    customer_id: CustomerId | None = None
    idempotency_key: IdempotencyKey | None = None
    manifest_id: Text | None = None
    preset_id: Annotated[str, Meta(extra={"check": "preset"})] = DEFAULT_PRESET
    recipe_id: Text | None = None
    region_id: Annotated[str, Meta(extra={"check": "region"})]
    tier_id: Annotated[str, Meta(extra={"check": "tier"})]
    user_display_name: Text | None = None
    website_template_slug: Text | None = None
    workflow_slugs: Slugs | None = None


class CreateInstanceResponse(msgspec.Struct, frozen=True, kw_only=True):
    idempotency_key: str
    instance_id: UUID | None
    message: str
    task_id: str


class InstanceListItem(msgspec.Struct, frozen=True, kw_only=True):
    agent_name: str | None
    created_at: TimeText
    hostname: str | None
    id: UuidText
    ip_address: str | None
    preset_id: str
    provider: str | None
    region_id: str
    runtime_type: RuntimeType
    status: str
    workload_type: WorkloadType
    customer_email: str | None
    product_tier_name: str | None
    customer_id: str
    tenant_id: str


class InstanceList(msgspec.Struct, frozen=True):
    instances: list[InstanceListItem]


class InstanceDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One instance.

    The last three fields are present where an earlier moment was asked for: the version of the instance then, when the
    event of that version was recorded, and the whole state.
    """

    agent_name: str | None
    created_at: TimeText
    hostname: str | None
    id: UuidText
    ip_address: str | None
    preset_id: str
    provider: str | None
    region_id: str
    runtime_type: RuntimeType
    status: str
    workload_type: WorkloadType
    callback_seq: int | None
    callback_stage: str | None
    capabilities: dict[str, bool]
    error_message: str | None
    health_status: str | None
    provisioning_stage: str | None
    server_type_plan: str | None
    updated_at: TimeText
    vpn_ip: str | None
    customer_id: str
    tenant_id: str
    version: int | UnsetType = UNSET
    recorded_at: TimeText | UnsetType = UNSET
    state: dict[str, Any] | UnsetType = UNSET


class InstanceEvents(msgspec.Struct, frozen=True, kw_only=True):
    events: list[HistoryEvent]


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    created_at: TimeText
    level: str
    message: str
    seq: int
    stage: str | None


class ProvisionLogs(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    logs: list[LogLine]
    total: int


class PollByKeyResponse(msgspec.Struct, frozen=True, kw_only=True):
    bootstrap_seq: int | None
    bootstrap_stage: str | None
    error_message: str | None
    found: bool
    hostname: str | None
    instance_id: UuidText | None
    logs: list[LogLine]
    provisioning_stage: str | None
    status: str | None


class DeleteInstanceResponse(msgspec.Struct, frozen=True, kw_only=True):
    already_deleted: bool
    instance_id: UUID
    message: str
    status: str


class IgnoredPart(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    reason: str


class RuntimeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is doing.

    `config_version`: the configuration that is wanted. Where `config_version_running` differs, the agent does not run
    it yet. `connections`: the state of the agent's channels, integrations and memory, by name. `config_ignored`: parts
    of the configuration that it does not use. Both are what the agent answers now.
    """

    active_connections: int | None
    bootstrap_seq: int | None
    bootstrap_stage: str | None
    error_code: str | None
    error_message: str | None
    health_failures: int
    health_status: str | None
    instance_id: UUID
    last_heartbeat: TimeText | None
    node_version: str | None
    openclaw_version: str | None
    provision_logs: list[LogLine]
    provisioning_stage: str | None
    skills_loaded: list[Any]
    status: str
    uptime_seconds: int | None
    config_version: int
    config_version_running: int | None
    agent_version: str | None
    connections: dict[str, str]
    workflows_loaded: list[str]
    config_ignored: list[IgnoredPart]
