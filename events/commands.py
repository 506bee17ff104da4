"""The commands to an instance, in the imperative. Every command has its own time, because `decide` has no clock."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from events.types import BootstrapStage, Health, Level, Sealed, TeardownStep, UsageEntry


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
    """Record a placement, addresses if there are none yet, and the intent to create a server. It has no effect outside the log."""

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
    """`nothing_made`: whether the provider itself answered that it created no server."""

    attempt: int
    code: str
    retryable: bool
    nothing_made: bool = False


class RecordServerDiscarded(Command, frozen=True, kw_only=True):
    attempt: int


class GiveUp(Command, frozen=True, kw_only=True):
    """End provisioning: no placement is left, or no placement can help."""

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
    boot_id: UUID
    key_id: UUID


class BootReport(NamedTuple):
    stage: BootstrapStage
    level: Level
    message: str


class ReportBootstrap(Command, frozen=True, kw_only=True):
    """`seq`: the number of the first report within its boot; the others have the numbers after it.

    `key_id`: the key that is acknowledged with the reports, if any.
    """

    boot_id: UUID
    seq: int
    reports: tuple[BootReport, ...]
    key_id: UUID | None = None


class MarkReady(Command, frozen=True, kw_only=True):
    attempt: int


class ChangeHealth(Command, frozen=True, kw_only=True):
    health: Health


class ReportServerVanished(Command, frozen=True, kw_only=True):
    attempt: int
    server_id: str


class ChangeConfig(Command, frozen=True, kw_only=True):
    """Fields as in `ConfigChanged`: what is unset stays."""

    agent_name: str | UnsetType | None = UNSET
    system_prompt: Sealed | UnsetType | None = UNSET
    customer_facing_prompt: Sealed | UnsetType | None = UNSET
    telegram_bot_token: Sealed | UnsetType | None = UNSET
    model_temperature: float | UnsetType | None = UNSET
    recipe_id: str | UnsetType | None = UNSET
    workflow_slugs: tuple[str, ...] | UnsetType = UNSET


class PatchPlatformConfig(Command, frozen=True, kw_only=True):
    """Fields as in `PlatformConfigPatched`. Execute it at the state whose documents were merged."""

    advanced: Sealed | UnsetType = UNSET
    channels: Sealed | UnsetType = UNSET
    integrations: tuple[Any, ...] | UnsetType = UNSET
    skills: tuple[Any, ...] | UnsetType = UNSET
    recipe_id: str | UnsetType | None = UNSET
    workflow_slugs: tuple[str, ...] | UnsetType = UNSET


class ChangeModelPolicy(Command, frozen=True, kw_only=True):
    """Fields as in `ModelPolicyChanged`: what is unset stays."""

    primary: str | UnsetType | None = UNSET
    fallbacks: tuple[str, ...] | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    embedding_model: str | UnsetType | None = UNSET
    budget_daily_usd: str | UnsetType | None = UNSET
    budget_monthly_usd: str | UnsetType | None = UNSET


class ChangeConsent(Command, frozen=True, kw_only=True):
    granted: bool


class RequestUpdates(Command, frozen=True, kw_only=True):
    """Execute it right before the agent is asked to apply updates."""

    config_version: int
    restart: bool
    forced: bool


class RecordUpdatesApplied(Command, frozen=True, kw_only=True):
    config_version: int
    restarted: bool
    forced: bool


class RecordUpdatesFailed(Command, frozen=True, kw_only=True):
    """`nothing_done`: whether the agent itself answered that it did not apply them."""

    config_version: int
    code: str
    nothing_done: bool = False


class RecordConversationsAccess(Command, frozen=True, kw_only=True):
    conversation_id: str | None = None


class RecordUsage(Command, frozen=True, kw_only=True):
    ledger_id: UUID
    seq: int
    entries: tuple[UsageEntry, ...]


class RotateAgentKey(Command, frozen=True, kw_only=True):
    pass


class RequestDeletion(Command, frozen=True, kw_only=True):
    reason: str


class RecordTeardownStep(Command, frozen=True, kw_only=True):
    step: TeardownStep


class BlockTeardown(Command, frozen=True, kw_only=True):
    step: TeardownStep
    code: str


class CompleteDeletion(Command, frozen=True, kw_only=True):
    pass


class EraseCustomer(Command, frozen=True, kw_only=True):
    """Execute it only after the customer's key was destroyed, because the event states that as a fact."""


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
    | ChangeConfig
    | PatchPlatformConfig
    | ChangeModelPolicy
    | ChangeConsent
    | RequestUpdates
    | RecordUpdatesApplied
    | RecordUpdatesFailed
    | RecordConversationsAccess
    | RecordUsage
    | RotateAgentKey
    | RequestDeletion
    | RecordTeardownStep
    | BlockTeardown
    | CompleteDeletion
    | EraseCustomer
)
