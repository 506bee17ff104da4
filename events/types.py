"""What can happen to an instance: one frozen struct per fact, in the past tense.

`at_ms` is when it happened by the clock of whoever observed it (milliseconds since 1970, UTC); the log adds its own
`recorded_at`. Fields of type `Sealed` hold ciphertext (see `events.keys`): the log never sees the plain text.
"""

from __future__ import annotations

from typing import ClassVar, NewType
from uuid import UUID

import msgspec

#: A personal or secret text, encrypted with its customer's key before it comes near a command.
Sealed = NewType("Sealed", str)


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What every event has. `schema_version` rises when a field's meaning changes; `events.upcast` reads the old ones."""

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
    """The intent that stands before every server creation: from here on a server may exist.

    The enrol token is derived from the installation's key and `enrol_nonce`, so that any worker can write the same
    user_data again after a crash; only its SHA-256 (hex) is kept here.
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
    #: True when the provider answered that it made nothing: no create call can still be on its way.
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
    reason: str


class BootstrapReported(Event, frozen=True, kw_only=True, tag="bootstrap_reported"):
    boot_id: UUID
    seq: int
    stage: str
    level: str
    message: str


class InstanceReady(Event, frozen=True, kw_only=True, tag="instance_ready"):
    attempt: int


class HealthChanged(Event, frozen=True, kw_only=True, tag="health_changed"):
    health: str


class ServerVanished(Event, frozen=True, kw_only=True, tag="server_vanished"):
    attempt: int
    server_id: str


class DeletionRequested(Event, frozen=True, kw_only=True, tag="deletion_requested"):
    reason: str


class TeardownStepDone(Event, frozen=True, kw_only=True, tag="teardown_step_done"):
    step: str


class TeardownBlocked(Event, frozen=True, kw_only=True, tag="teardown_blocked"):
    step: str
    code: str


class InstanceDeleted(Event, frozen=True, kw_only=True, tag="instance_deleted"):
    pass


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
    | DeletionRequested
    | TeardownStepDone
    | TeardownBlocked
    | InstanceDeleted
)
"""The closed union of events: a new one fails type checking wherever it is not handled."""
