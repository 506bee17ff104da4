"""The contract's bodies for an instance in use; see `schemas`. A field that a change omits is `UNSET`."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hydracore.agent.chat_messages import CONVERSATION_ID_PATTERN
from hydracore.agent.expressclaw.document import FALLBACKS_MAX
from hydracore.api.schemas import ON_ONE_LINE, Slugs, Text, undocumented

#: Prompts may be as long as a request. Names of models and tokens are short.
Prompt = Annotated[str, undocumented(max_length=50_000)]
BotToken = Annotated[str, undocumented(min_length=1, max_length=256, extra={"check": "bot_token"})]
#: On one line, because messages and log lines name it.
ModelName = Annotated[str, undocumented(min_length=1, max_length=200, pattern=ON_ONE_LINE)]
Temperature = Annotated[float, undocumented(ge=0, le=2)]
Dollars = Annotated[float, undocumented(ge=0, le=1e9)]
TokensMax = Annotated[int, undocumented(ge=1, le=10_000_000)]
ConversationId = Annotated[str, undocumented(pattern=CONVERSATION_ID_PATTERN)]
#: Sent to the agent as a header.
ChatKey = Annotated[str, undocumented(min_length=1, max_length=200, pattern=r"^[\x20-\x7e]*\Z")]
FreeList = Annotated[list[Any], undocumented(max_length=500)]
#: The contract does not define the type of slugs here. Elsewhere it says text.
AnySlugs = Annotated[list[Any], undocumented(max_length=1_000)]
Days = Annotated[int, undocumented(ge=1, le=366)]

DAYS_DEFAULT: Final = 30
MESSAGE_LENGTH_MAX: Final = 8_000


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: ConversationId | None = None
    message: Annotated[str, Meta(min_length=1, max_length=MESSAGE_LENGTH_MAX)]


class UpdateConfig(msgspec.Struct, frozen=True, kw_only=True):
    agent_name: Text | UnsetType | None = UNSET
    customer_facing_prompt: Prompt | UnsetType | None = UNSET
    model_temperature: Temperature | UnsetType | None = UNSET
    recipe_id: Text | UnsetType | None = UNSET
    system_prompt: Prompt | UnsetType | None = UNSET
    telegram_bot_token: BotToken | UnsetType | None = UNSET
    workflow_slugs: Slugs | UnsetType | None = UNSET


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration that is wanted, with masked secrets. `applied`: whether the agent is known to run with it."""

    instance_id: UUID
    agent_name: str | None
    customer_facing_prompt: str | None
    model_temperature: float | None
    recipe_id: str | None
    system_prompt: str | None
    telegram_bot_token: str | None
    workflow_slugs: tuple[str, ...]
    model_policy: dict[str, Any]
    config_version: int
    applied: bool
    message: str


class RunningConfig(Config, frozen=True, kw_only=True):
    """`running`: the configuration that the agent says it runs with; null where it does not answer."""

    running: dict[str, Any] | None


class PatchPlatformConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`advanced` and `channels` are JSON merge patches (RFC 7396)."""

    advanced: dict[str, Any] | UnsetType | None = UNSET
    channels: dict[str, Any] | UnsetType | None = UNSET
    integrations: FreeList | UnsetType | None = UNSET
    recipe_id: Text | UnsetType | None = UNSET
    skills: FreeList | UnsetType | None = UNSET
    workflow_slugs: AnySlugs | UnsetType | None = UNSET


class PlatformConfig(msgspec.Struct, frozen=True, kw_only=True):
    advanced: dict[str, Any]
    channels: dict[str, Any]
    instance_id: UUID
    integrations: list[Any]
    recipe_id: str | None
    skills: list[Any]
    workflow_slugs: list[Any]
    config_version: int
    message: str


class UpdateModelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    budget_daily_usd: Dollars | UnsetType | None = UNSET
    budget_monthly_usd: Dollars | UnsetType | None = UNSET
    embedding_model: ModelName | UnsetType | None = UNSET
    fallbacks: Annotated[list[ModelName], undocumented(max_length=FALLBACKS_MAX)] | UnsetType | None = UNSET
    max_tokens: TokensMax | UnsetType | None = UNSET
    primary: ModelName | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET


class ModelPolicyResponse(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    message: str
    model_policy: dict[str, Any]
    config_version: int


class UpdateConsent(msgspec.Struct, frozen=True, kw_only=True):
    consent_debug_access: bool


class ConsentResponse(msgspec.Struct, frozen=True, kw_only=True):
    consent_debug_access: bool
    instance_id: UUID
    message: str


class ApplyUpdates(msgspec.Struct, frozen=True, kw_only=True):
    force: bool = False
    restart_agent: bool = False


class ApplyUpdatesResponse(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    message: str
    status: str


class RotateKeyResponse(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: UUID
    status: str


class CleanupResponse(msgspec.Struct, frozen=True, kw_only=True):
    cleaned: int
    errors: int
    message: str


class UsageDay(msgspec.Struct, frozen=True, kw_only=True):
    """`cost_usd`: a decimal number of US dollars."""

    date: date
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    daily: list[UsageDay]
    hostname: str | None
    instance_id: UUID
    total_cost_usd: str
    total_requests: int
    total_tokens: int
    unique_end_users: int
