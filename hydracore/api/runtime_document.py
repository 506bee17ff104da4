"""The runtime document that an agent runs: JSON, made from the log, with secrets in clear.

It is sent to the enrolled agent only, over the VPN or TLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins
from psycopg_pool import AsyncConnectionPool

from events.state import Instance
from events.times import day_of
from hydracore.api.model_choice import ModelChoice, model_choice
from hydracore.api.vault import OpenedConfig, Vault
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.money import decimal_text
from hydracore.settings import Settings
from projections.usage_queries import spent

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RuntimeDocuments:
    pool: AsyncConnectionPool
    vault: Vault
    catalogue: Catalogue
    settings: Settings
    now_ms: NowMs

    async def build(self, state: Instance) -> Json:
        """The document of `state.config.version`."""
        opened = await self.vault.open(state)
        return {
            "type": state.runtime_type,
            "agent_name": state.agent_name,
            "preset": self._preset(state),
            "recipe_id": state.recipe_id,
            "recipe": self._recipe(state),
            "system_prompt": opened.system_prompt,
            "customer_facing_prompt": opened.customer_facing_prompt,
            "workflow_slugs": state.workflow_slugs,
            "workflows": self._workflows(state),
            "capabilities": state.capabilities,
            "model": {
                "base_url": self.settings.model_base_url or None,
                "api_key": self.settings.model_api_key or None,
            },
            "model_policy": _policy(model_choice(state, self.catalogue)),
            "prices": {
                name: {
                    "input_usd_per_mtok": decimal_text(model.input_usd_per_mtok),
                    "output_usd_per_mtok": decimal_text(model.output_usd_per_mtok),
                }
                for name, model in self.catalogue.models.items()
            },
            "platform": _platform(opened, self.skills(state, opened)),
            "telegram": {
                "bot_token": opened.telegram_bot_token,
                "base_url": self.settings.telegram_base_url,
            },
            "spent": await self._spent(state),
        }

    def skills(self, state: Instance, opened: OpenedConfig) -> list[Any]:
        """The enabled skills: the owner's choice, or else the preset's."""
        if opened.skills is not None:
            return opened.skills
        preset = self.catalogue.presets.get(state.preset_id)
        return list(preset.skills) if preset is not None else []

    def _preset(self, state: Instance) -> Json:
        preset = self.catalogue.presets.get(state.preset_id)
        if preset is None:
            # A catalogue may drop a preset. Its instances continue without its contents.
            return {"id": state.preset_id, "name": state.preset_id, "system_prompt": "", "skills": []}
        return {
            "id": state.preset_id,
            "name": preset.name,
            "system_prompt": preset.system_prompt,
            "skills": preset.skills,
        }

    def _recipe(self, state: Instance) -> Json | None:
        recipe = self.catalogue.recipes.get(state.recipe_id or "")
        return None if recipe is None else {"id": state.recipe_id, "prompt": recipe.prompt}

    def _workflows(self, state: Instance) -> list[Json]:
        """The workflows that the catalogue has. The agent reports the others as unknown."""
        workflows = self.catalogue.workflows
        return [
            {"slug": slug, **to_builtins(workflows[slug])}
            for slug in dict.fromkeys(state.workflow_slugs)
            if slug in workflows
        ]

    async def _spent(self, state: Instance) -> Json:
        today = day_of(self.now_ms())
        known = await spent(self.pool, state.id, today=today)
        return {
            "day": today.isoformat(),
            "daily_usd": decimal_text(known.daily_usd),
            "month": f"{today:%Y-%m}",
            "monthly_usd": decimal_text(known.monthly_usd),
        }


def _policy(choice: ModelChoice) -> Json:
    return {
        "primary": choice.primary,
        "fallbacks": choice.fallbacks,
        "temperature": choice.temperature,
        "max_tokens": choice.max_tokens,
        "embedding_model": choice.embedding_model,
        "budget_daily_usd": None if choice.budget_daily_usd is None else decimal_text(choice.budget_daily_usd),
        "budget_monthly_usd": None if choice.budget_monthly_usd is None else decimal_text(choice.budget_monthly_usd),
    }


def _platform(opened: OpenedConfig, skills: list[Any]) -> Json:
    return {
        "skills": skills,
        "integrations": opened.integrations,
        "channels": opened.channels,
        "advanced": opened.advanced,
    }
