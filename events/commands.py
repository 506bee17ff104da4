"""What can be asked of an instance: orders in the imperative. Every command carries its own time; decide has no clock."""

from __future__ import annotations

from uuid import UUID

import msgspec

from events.types import Sealed


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """`at_ms`: now, by the caller's clock, in milliseconds since 1970 (UTC)."""

    at_ms: int


class RequestInstance(Command, frozen=True, kw_only=True):
    tenant_id: str
    customer_id: str
    idempotency_key: str
    region_id: str
    tier_id: str
    preset_id: str
    runtime_type: str
    workload_type: str
    capabilities: dict[str, bool]
    tier_name: str | None = None
    agent_name: str | None = None
    manifest_id: str | None = None
    recipe_id: str | None = None
    website_template_slug: str | None = None
    workflow_slugs: tuple[str, ...] = ()
    customer_email: Sealed | None = None
    user_display_name: Sealed | None = None


class PlanServer(Command, frozen=True, kw_only=True):
    """Choose a placement, take addresses if there are none yet, and intend a server: one decision, no effect."""

    attempt: int
    provider: str
    server_type: str
    location: str
    image: str
    hostname: str
    vpn_ip: str
    server_name: str
    enrol_nonce: str
    enrol_token_hash: str
    enrol_expires_ms: int
    deadline_ms: int


class RecordServerCreated(Command, frozen=True, kw_only=True):
    attempt: int
    server_id: str
    ipv4: str | None = None
    ipv6: str | None = None
    action_id: str | None = None
    adopted: bool = False


class RecordServerRunning(Command, frozen=True, kw_only=True):
    attempt: int


class FailAttempt(Command, frozen=True, kw_only=True):
    """`nothing_made`: the provider itself answered that there is no server."""

    attempt: int
    code: str
    retryable: bool
    nothing_made: bool = False


class RecordServerDiscarded(Command, frozen=True, kw_only=True):
    attempt: int


class GiveUp(Command, frozen=True, kw_only=True):
    """End provisioning: no placement is left, or none can help."""

    code: str


class EnrolAgent(Command, frozen=True, kw_only=True):
    """`token_hash`: SHA-256 (hex) of the enrol token that the agent showed."""

    attempt: int
    token_hash: str
    boot_id: UUID
    signing_key: str
    vpn_key: str


class IssueAgentKey(Command, frozen=True, kw_only=True):
    attempt: int
    boot_id: UUID
    key_id: UUID
    key_hash: str


class AcknowledgeAgentKey(Command, frozen=True, kw_only=True):
    key_id: UUID


class ReportBootstrap(Command, frozen=True, kw_only=True):
    boot_id: UUID
    seq: int
    stage: str
    level: str
    message: str


class MarkReady(Command, frozen=True, kw_only=True):
    attempt: int


class ChangeHealth(Command, frozen=True, kw_only=True):
    health: str


class ReportServerVanished(Command, frozen=True, kw_only=True):
    attempt: int
    server_id: str


class RequestDeletion(Command, frozen=True, kw_only=True):
    reason: str


class RecordTeardownStep(Command, frozen=True, kw_only=True):
    step: str


class BlockTeardown(Command, frozen=True, kw_only=True):
    step: str
    code: str


class CompleteDeletion(Command, frozen=True, kw_only=True):
    pass


AnyCommand = (
    RequestInstance
    | PlanServer
    | RecordServerCreated
    | RecordServerRunning
    | FailAttempt
    | RecordServerDiscarded
    | GiveUp
    | EnrolAgent
    | IssueAgentKey
    | AcknowledgeAgentKey
    | ReportBootstrap
    | MarkReady
    | ChangeHealth
    | ReportServerVanished
    | RequestDeletion
    | RecordTeardownStep
    | BlockTeardown
    | CompleteDeletion
)
