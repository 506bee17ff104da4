"""The state of one instance: the result of folding its events, and the only input of a decision besides the command.

A state is never changed once it is returned: only `evolve` writes fields, and only those of its own drafts. The structs that it
changes in place are not frozen, because copying them for every event would double the cost of folding.
"""

from __future__ import annotations

from typing import Any, Literal, get_args
from uuid import UUID

import msgspec

from events.lifecycle import DELETING, PENDING, Status
from events.types import BootstrapStage, Health, Sealed, TeardownStep

#: How far provisioning is, in order.
ProvisioningStage = Literal[
    "queued",
    "placement",
    "network",
    "server_intended",
    "server_created",
    "server_running",
    "bootstrapping",
    "verifying",
    "ready",
]

STAGES: tuple[ProvisioningStage, ...] = get_args(ProvisioningStage)
BOOTSTRAP_STAGES: tuple[BootstrapStage, ...] = get_args(BootstrapStage)
TEARDOWN_STEPS: tuple[TeardownStep, ...] = get_args(TeardownStep)

#: The sealed fields of the instance and of its configuration, which an erasure clears.
SEALED_OF_INSTANCE = ("customer_email", "user_display_name")
SEALED_OF_CONFIG = ("system_prompt", "customer_facing_prompt", "telegram_bot_token", "advanced", "channels")

#: How many placements are tried before provisioning fails.
ATTEMPTS_MAX = 4


class Attempt(msgspec.Struct, kw_only=True):
    """One attempt to get a server: its placement, its intent, and what is known of the outcome."""

    number: int
    provider: str
    server_type: str
    location: str
    image: str
    server_name: str | None = None
    enrol_nonce: str | None = None
    enrol_token_hash: str | None = None
    enrol_expires_ms: int = 0
    intended_ms: int | None = None
    deadline_ms: int | None = None
    server_id: str | None = None
    action_id: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    server_status: str | None = None
    failure: str | None = None
    nothing_made: bool = False
    discarded: bool = False

    @property
    def may_have_server(self) -> bool:
        """Whether there may be a server: from the intent on, until its absence was verified."""
        return self.intended_ms is not None and not self.discarded


class Agent(msgspec.Struct, kw_only=True):
    """The agent that has enrolled with the current attempt's token."""

    signing_key: str
    vpn_key: str
    boot_id: UUID
    superseded_boots: tuple[UUID, ...] = ()
    bootstrap_seq: int = 0
    bootstrap_stage: BootstrapStage | None = None
    key_id: UUID | None = None
    key_hash: str | None = None
    key_acknowledged: bool = False
    #: The key whose control token the agent accepts: the last one it acknowledged, revoked or not.
    control_key_id: UUID | None = None
    #: Its hash. After the master key was replaced, it shows from which master key the agent's tokens were derived.
    control_key_hash: str | None = None
    #: The key that the instance's deletion revoked. The agent may report usage with it until the drain ends.
    leaving_key_id: UUID | None = None
    leaving_key_hash: str | None = None
    contested: bool = False


class PastAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent of an earlier attempt can prove, so that only such an agent is told that its attempt is over."""

    enrol_token_hash: str
    signing_key: str | None


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The customer's choices; None means the catalogue's default. Budgets are decimal US dollars."""

    primary: str | None = None
    fallbacks: tuple[str, ...] | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    embedding_model: str | None = None
    budget_daily_usd: str | None = None
    budget_monthly_usd: str | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's configuration. `version` rises with every change; `advanced` and `channels` are sealed JSON."""

    version: int = 1
    system_prompt: Sealed | None = None
    customer_facing_prompt: Sealed | None = None
    telegram_bot_token: Sealed | None = None
    model_temperature: float | None = None
    advanced: Sealed | None = None
    channels: Sealed | None = None
    integrations: tuple[Any, ...] = ()
    skills: tuple[Any, ...] | None = None
    model_policy: ModelPolicy = ModelPolicy()


class Instance(msgspec.Struct, kw_only=True):
    """An instance at one version of its stream. `version`: the number of events that it was folded from, so the first is 1."""

    id: UUID
    version: int
    tenant_id: str
    customer_id: str
    idempotency_key: str
    region_id: str
    tier_id: str
    tier_name: str | None
    preset_id: str
    runtime_type: str
    workload_type: str
    capabilities: dict[str, bool]
    agent_name: str | None
    manifest_id: str | None
    recipe_id: str | None
    website_template_slug: str | None
    workflow_slugs: tuple[str, ...]
    customer_email: Sealed | None
    user_display_name: Sealed | None
    created_ms: int
    updated_ms: int
    status: Status = PENDING
    provisioning_stage: ProvisioningStage = "queued"
    attempt: Attempt | None = None
    #: The earlier attempts whose servers were intended, in order.
    past_attempts: tuple[PastAttempt, ...] = ()
    #: Placements that failed, as (provider, server_type, location), in order.
    failed_placements: tuple[tuple[str, str, str], ...] = ()
    hostname: str | None = None
    vpn_ip: str | None = None
    addresses_released_ms: int | None = None
    agent: Agent | None = None
    config: Config = Config()
    consent_debug_access: bool = False
    #: The number of the last recorded batch of usage, by ledger id, of the `LEDGERS_KEPT` ledgers that were used last.
    usage_seqs: dict[str, int] = {}
    health: Health | None = None
    error_code: str | None = None
    #: False after a failure that no other placement can avoid.
    retryable: bool = True
    deletion_requested_ms: int | None = None
    #: When the deletion revoked the agent's key. The time limit of its open chats counts from then.
    key_revoked_ms: int | None = None
    teardown_done: tuple[TeardownStep, ...] = ()
    teardown_blocked: TeardownStep | None = None
    deleted_ms: int | None = None
    #: When the destruction of the customer's key was recorded. From then on, no sealed field has a value.
    erased_ms: int | None = None

    @property
    def is_draining(self) -> bool:
        """Whether it is being deleted, and its agent may still have chats to end and their usage to report.

        An agent that has never acknowledged a key has had no chats.
        """
        has_served = self.agent is not None and self.agent.control_key_id is not None
        return self.status == DELETING and has_served and "drained" not in self.teardown_done

    @property
    def teardown_step(self) -> TeardownStep | None:
        """The next step of a teardown, or None after the last one."""
        done = len(self.teardown_done)
        return TEARDOWN_STEPS[done] if done < len(TEARDOWN_STEPS) else None
