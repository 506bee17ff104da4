"""What can happen to an instance: one frozen struct per fact, in the past tense.

`at_ms` is when it happened by the clock of whoever observed it (milliseconds since 1970, UTC); the log adds its own
`recorded_at`. Fields of type `Sealed` hold ciphertext (see `events.keys`): the log never sees the plain text.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NewType
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

#: A personal or secret text, encrypted with its customer's key before it comes near a command.
Sealed = NewType("Sealed", str)

#: As the agent reports it, in order; a stage never goes back within a boot.
BootstrapStage = Literal["booted", "enrolled", "secrets", "configured", "runtime_started", "healthy"]

Level = Literal["info", "warning", "error"]

Health = Literal["healthy", "late", "unreachable"]

RevocationReason = Literal["rotation", "deletion"]

#: In order. Each step is idempotent and retried for ever.
TeardownStep = Literal[
    "key_revoked", "drained", "server_deleted", "absence_verified", "artifacts_deleted", "addresses_freed"
]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every event has. The log keeps `schema_version` beside each payload.

    It rises when a field's meaning changes, and when a field may have a value that it could not have before: a release that does not
    know the value then says that a newer one has written it.
    """

    schema_version: ClassVar[int] = 1

    at_ms: int


class InstanceRequested(Event, frozen=True, kw_only=True, tag="instance_requested"):
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


class PlacementChosen(Event, frozen=True, kw_only=True, tag="placement_chosen"):
    attempt: int
    provider: str
    server_type: str
    location: str
    image: str


class AddressReserved(Event, frozen=True, kw_only=True, tag="address_reserved"):
    hostname: str
    vpn_ip: str


class ServerIntended(Event, frozen=True, kw_only=True, tag="server_intended"):
    """The intent that precedes every server creation: from here on a server may exist.

    The enrol token is derived from the installation's key and `enrol_nonce`, so that any worker can write the same
    user_data again after a crash; only its SHA-256 (hex) is stored here.
    """

    attempt: int
    server_name: str
    enrol_nonce: str
    enrol_token_hash: str
    enrol_expires_ms: int
    deadline_ms: int


class ServerCreated(Event, frozen=True, kw_only=True, tag="server_created"):
    attempt: int
    server_id: str
    ipv4: str | None = None
    ipv6: str | None = None
    action_id: str | None = None
    #: True when the server was found by its labels instead of by our create call's reply.
    adopted: bool = False


class ServerObserved(Event, frozen=True, kw_only=True, tag="server_observed"):
    attempt: int
    server_status: str


class AttemptFailed(Event, frozen=True, kw_only=True, tag="attempt_failed"):
    attempt: int
    code: str
    #: False when no other placement can help (refused credentials, spent quota).
    retryable: bool
    #: True if the provider answered that it created nothing: no create call can still be in transit.
    nothing_made: bool = False


class ServerDiscarded(Event, frozen=True, kw_only=True, tag="server_discarded"):
    """The server of a failed attempt is gone from the provider, by id and by label."""

    attempt: int


class ProvisioningFailed(Event, frozen=True, kw_only=True, tag="provisioning_failed"):
    code: str


class AgentEnrolled(Event, frozen=True, kw_only=True, tag="agent_enrolled"):
    """First contact binds the enrol token to the agent's keys; a later boot of the same agent enrols again."""

    attempt: int
    boot_id: UUID
    signing_key: str
    vpn_key: str


class EnrolmentContested(Event, frozen=True, kw_only=True, tag="enrolment_contested"):
    """Somebody with the right token but another key tried to enrol: the token may have leaked."""

    attempt: int
    boot_id: UUID


class AgentKeyIssued(Event, frozen=True, kw_only=True, tag="agent_key_issued"):
    attempt: int
    key_id: UUID
    key_hash: str


class AgentKeyAcknowledged(Event, frozen=True, kw_only=True, tag="agent_key_acknowledged"):
    key_id: UUID


class AgentKeyRevoked(Event, frozen=True, kw_only=True, tag="agent_key_revoked"):
    key_id: UUID
    reason: RevocationReason


class BootstrapReported(Event, frozen=True, kw_only=True, tag="bootstrap_reported"):
    boot_id: UUID
    seq: int
    stage: BootstrapStage
    level: Level
    message: str


class InstanceReady(Event, frozen=True, kw_only=True, tag="instance_ready"):
    attempt: int


class HealthChanged(Event, frozen=True, kw_only=True, tag="health_changed"):
    health: Health


class ServerVanished(Event, frozen=True, kw_only=True, tag="server_vanished"):
    attempt: int
    server_id: str


class ConfigChanged(Event, frozen=True, kw_only=True, tag="config_changed"):
    """Only the fields that are set changed; null clears. Prompts and tokens are sealed."""

    agent_name: str | UnsetType | None = UNSET
    system_prompt: Sealed | UnsetType | None = UNSET
    customer_facing_prompt: Sealed | UnsetType | None = UNSET
    telegram_bot_token: Sealed | UnsetType | None = UNSET
    model_temperature: float | UnsetType | None = UNSET
    recipe_id: str | UnsetType | None = UNSET
    workflow_slugs: tuple[str, ...] | UnsetType = UNSET


class PlatformConfigPatched(Event, frozen=True, kw_only=True, tag="platform_config_patched"):
    """Only the fields that are set changed. `advanced` and `channels` are whole documents after the merge, sealed JSON."""

    advanced: Sealed | UnsetType = UNSET
    channels: Sealed | UnsetType = UNSET
    integrations: tuple[Any, ...] | UnsetType = UNSET
    skills: tuple[Any, ...] | UnsetType = UNSET
    recipe_id: str | UnsetType | None = UNSET
    workflow_slugs: tuple[str, ...] | UnsetType = UNSET


class ModelPolicyChanged(Event, frozen=True, kw_only=True, tag="model_policy_changed"):
    """Only the fields that are set changed; null goes back to the catalogue's default. Budgets are decimal US dollars."""

    primary: str | UnsetType | None = UNSET
    fallbacks: tuple[str, ...] | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    embedding_model: str | UnsetType | None = UNSET
    budget_daily_usd: str | UnsetType | None = UNSET
    budget_monthly_usd: str | UnsetType | None = UNSET


class ConsentChanged(Event, frozen=True, kw_only=True, tag="consent_changed"):
    """Whether staff may read the owner's conversations."""

    granted: bool


class UpdatesRequested(Event, frozen=True, kw_only=True, tag="updates_requested"):
    """The intent that precedes every update: from here on the agent may apply `config_version`, and a `restart` may cut chats.

    The outcome follows as an event whose command has this one's as its cause. If there is none, the outcome is unknown.
    """

    config_version: int
    restart: bool
    forced: bool


class UpdatesApplied(Event, frozen=True, kw_only=True, tag="updates_applied"):
    config_version: int
    restarted: bool
    forced: bool


class UpdatesFailed(Event, frozen=True, kw_only=True, tag="updates_failed"):
    """The agent has not confirmed that it applied the configuration."""

    config_version: int
    code: str
    #: True if the agent answered that it did not apply it. Otherwise it may have done so, or may still do so.
    nothing_done: bool = False


class ConversationsAccessed(Event, frozen=True, kw_only=True, tag="conversations_accessed"):
    """Somebody other than the owner read conversations: one, or the list if `conversation_id` is null.

    The id of a Telegram chat is a keyed digest (in the first releases: the chat's number).
    """

    conversation_id: str | None = None


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model call. `cost_usd`: decimal US dollars. `end_user`: a keyed digest, so that users can be counted only."""

    at_ms: int
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    channel: str
    end_user: str | None = None


class UsageRecorded(Event, frozen=True, kw_only=True, tag="usage_recorded"):
    """A batch from the agent's ledger. `seq` counts from 1 without gaps within `ledger_id`, so no batch counts twice or is lost."""

    ledger_id: UUID
    seq: int
    entries: tuple[UsageEntry, ...]


class DeletionRequested(Event, frozen=True, kw_only=True, tag="deletion_requested"):
    reason: str


class TeardownStepDone(Event, frozen=True, kw_only=True, tag="teardown_step_done"):
    step: TeardownStep


class TeardownBlocked(Event, frozen=True, kw_only=True, tag="teardown_blocked"):
    step: TeardownStep
    code: str


class InstanceDeleted(Event, frozen=True, kw_only=True, tag="instance_deleted"):
    pass


class CustomerErased(Event, frozen=True, kw_only=True, tag="customer_erased"):
    """The customer's key was destroyed: all sealed fields of this stream are unreadable for ever, in backups too."""


AnyEvent = (
    InstanceRequested
    | PlacementChosen
    | AddressReserved
    | ServerIntended
    | ServerCreated
    | ServerObserved
    | AttemptFailed
    | ServerDiscarded
    | ProvisioningFailed
    | AgentEnrolled
    | EnrolmentContested
    | AgentKeyIssued
    | AgentKeyAcknowledged
    | AgentKeyRevoked
    | BootstrapReported
    | InstanceReady
    | HealthChanged
    | ServerVanished
    | ConfigChanged
    | PlatformConfigPatched
    | ModelPolicyChanged
    | ConsentChanged
    | UpdatesRequested
    | UpdatesApplied
    | UpdatesFailed
    | ConversationsAccessed
    | UsageRecorded
    | DeletionRequested
    | TeardownStepDone
    | TeardownBlocked
    | InstanceDeleted
    | CustomerErased
)
"""The closed union of events: a new one fails type checking wherever it is not handled."""
