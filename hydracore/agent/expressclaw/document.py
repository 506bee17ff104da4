"""The runtime document, by which the control plane configures the runtime, read and checked.

Unknown keys are ignored, so that a newer control plane can send more. Missing keys have the defaults below.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec

from hydracore.agent.errors import RuntimeFailed
from hydracore.agent.messages import HeaderToken

#: The most fallbacks of a policy. More would only make a chat slower to fail.
FALLBACKS_MAX = 8

#: How long a model may keep us waiting for its first or next word, unless `platform.advanced` says otherwise.
MODEL_TIMEOUT_S = 30.0
MODEL_TIMEOUT_S_MAX = 300.0

TELEGRAM_URL = "https://api.telegram.org"

_Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^/\s]+")]


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    name: str = ""
    system_prompt: str = ""
    skills: tuple[str, ...] = ()


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    prompt: str = ""


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """Steps to follow in order in the case that `when` describes, and the ids of the skills that they need."""

    slug: str
    name: str = ""
    when: str = ""
    steps: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint of the models. `/chat/completions` is added to `base_url`."""

    base_url: _Url | None = None
    api_key: HeaderToken | None = None

    def __repr__(self) -> str:
        return f"Model(base_url={self.base_url!r})"


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    primary: str = ""
    fallbacks: Annotated[tuple[str, ...], msgspec.Meta(max_length=FALLBACKS_MAX)] = ()
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    embedding_model: str | None = None
    budget_daily_usd: Decimal | None = None
    budget_monthly_usd: Decimal | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models to ask, in order, without duplicates."""
        return tuple(dict.fromkeys(name for name in (self.primary, *self.fallbacks) if name))


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars for a million tokens."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


class SkillSetting(msgspec.Struct, frozen=True):
    """An item of `platform.skills`."""

    id: str
    enabled: bool = True


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that the customer fills in freely. What this runtime cannot use is reported (see
    `features`), and does not keep the agent from running.

    `skills`: ids, or objects with `id` and perhaps `enabled`; null means the preset's skills.
    """

    skills: tuple[Any, ...] | None = None
    integrations: tuple[Any, ...] = ()
    channels: dict[str, Any] = {}
    advanced: dict[str, Any] = {}

    @property
    def model_timeout_s(self) -> float:
        wanted = self.advanced.get("model_timeout_s")
        if isinstance(wanted, int | float) and not isinstance(wanted, bool) and 0 < wanted <= MODEL_TIMEOUT_S_MAX:
            return float(wanted)
        return MODEL_TIMEOUT_S


class Telegram(msgspec.Struct, frozen=True, kw_only=True):
    """An invalid `bot_token` is an error of the channel, not of the configuration."""

    bot_token: str | None = None
    base_url: _Url = TELEGRAM_URL

    def __repr__(self) -> str:
        return f"Telegram(base_url={self.base_url!r})"


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """The spending that the control plane knew of when it made the document. Days and months are UTC."""

    day: str = ""
    daily_usd: Decimal = Decimal(0)
    month: str = ""
    monthly_usd: Decimal = Decimal(0)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    agent_name: str | None = None
    preset: Preset = Preset()
    recipe_id: str | None = None
    recipe: Recipe | None = None
    workflow_slugs: tuple[str, ...] = ()
    workflows: tuple[Workflow, ...] = ()
    system_prompt: str | None = None
    customer_facing_prompt: str | None = None
    model: Model = Model()
    model_policy: ModelPolicy = ModelPolicy()
    prices: dict[str, Price] = {}
    platform: Platform = Platform()
    telegram: Telegram = Telegram()
    spent: Spent = Spent()

    def __repr__(self) -> str:
        # Prompts are the customer's, and must not get into logs.
        return f"Document(model={self.model!r}, preset={self.preset.id!r})"


def read_document(settings: dict[str, Any]) -> Document:
    """Raises `RuntimeFailed` with the code `config_invalid`. Its message names the field, never the value."""
    try:
        return msgspec.convert(settings, Document)
    except msgspec.ValidationError as error:
        raise RuntimeFailed("config_invalid", f"The configuration cannot be used: {error}") from None


def enabled_skills(document: Document) -> tuple[str, ...]:
    """The ids of the skills that are wanted, in order, without duplicates."""
    wanted: dict[str, bool] = {}
    skills = document.platform.skills
    for skill in document.preset.skills if skills is None else skills:
        setting = skill_setting(skill)
        if setting is not None:
            wanted[setting.id] = setting.enabled
    return tuple(skill_id for skill_id, on in wanted.items() if on)


def skill_setting(given: Any) -> SkillSetting | None:
    """None if `given` is malformed: half understood, it might turn on a skill that is to be off."""
    try:
        return SkillSetting(given) if isinstance(given, str) else msgspec.convert(given, SkillSetting)
    except msgspec.ValidationError:
        return None
