"""Reads the free parts of the document, which the customer fills in: what this runtime uses and what it does not.

Nothing is dropped silently: whatever is not used is in `ignored` with its path, as the status shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from hydracore.agent.expressclaw.connections import UNSUPPORTED, error_state
from hydracore.agent.expressclaw.document import (
    MODEL_TIMEOUT_S_MAX,
    Document,
    Telegram,
    Workflow,
    enabled_skills,
    skill_setting,
)
from hydracore.agent.expressclaw.skills import Skill, load_skills
from hydracore.agent.messages import Ignored
from hydracore.hosts import is_loopback

#: The most ignored parts, and the most unusable connections, that the status shows. More would not help anybody. Even
#: with names that take six bytes per character, they fit together into the largest status that the control plane reads.
IGNORED_MAX = 100
PATH_CHARS_MAX = 200
NAME_CHARS_MAX = 64

WEBHOOKS_MAX = 10


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An integration that gets a notice of each chat. `secret` signs the notices."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")] = "webhook"
    type: str = "webhook"
    url: Annotated[str, msgspec.Meta(max_length=2000)]
    secret: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    enabled: bool = True

    def __repr__(self) -> str:
        return f"Webhook(id={self.id!r})"


class TelegramSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`channels.telegram`. `allowed_user_ids`: whom the bot answers; null is everybody."""

    enabled: bool = True
    bot_token: str | None = None
    allowed_user_ids: tuple[int, ...] | None = None


class Bot(NamedTuple):
    """The bot that the Telegram channel is to run. `refusal_reason`: why it cannot run although it is wanted."""

    telegram: Telegram
    allowed_user_ids: tuple[int, ...] | None = None
    refusal_reason: str | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self.telegram.bot_token) or self.refusal_reason is not None

    def __repr__(self) -> str:
        return f"Bot(allowed_user_ids={self.allowed_user_ids})"


class Features(NamedTuple):
    """What a document turns on and this runtime can use. `states`: the states of requested connections that cannot be
    used, by name. `ignored`: the settings that have no effect, with reasons."""

    bot: Bot
    webhooks: tuple[Webhook, ...]
    workflows: tuple[Workflow, ...]
    skills: tuple[Skill, ...]
    states: Mapping[str, str]
    ignored: tuple[Ignored, ...]


def read_features(document: Document) -> Features:
    """Never fails: what cannot be used must not keep an agent from running."""
    return _Reader(document).read()


def integration_name(integration_id: str) -> str:
    """The name of an integration among the connections. Its prefix keeps it apart from the names of channels."""
    return f"integration:{integration_id}"


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._states: dict[str, str] = {}
        self._ignored: list[Ignored] = []

    def read(self) -> Features:
        self._advanced()
        bot = self._bot()
        webhooks = self._webhooks()
        if self._document.recipe_id is not None and self._document.recipe is None:
            self._ignore("recipe_id", f"there is no recipe {self._document.recipe_id!r:.64}")
        workflows = self._workflows()
        skills = self._skills(workflows)
        states = dict(islice(self._states.items(), IGNORED_MAX))
        return Features(bot, webhooks, workflows, skills, states, tuple(self._ignored[:IGNORED_MAX]))

    def _ignore(self, path: str, reason: str) -> None:
        self._ignored.append(Ignored(path[:PATH_CHARS_MAX], reason))

    def _ignore_unknown(self, path: str, given: Any, known: type[msgspec.Struct]) -> None:
        for name in cast("dict[str, Any]", given).keys() - set(known.__struct_fields__):
            self._ignore(f"{path}.{name}", "unknown setting")

    def _advanced(self) -> None:
        platform = self._document.platform
        for name, given in platform.advanced.items():
            path = f"platform.advanced.{name}"
            if name != "model_timeout_s":
                self._ignore(path, "unknown setting")
            elif platform.model_timeout_s != given:
                self._ignore(path, f"must be a number of seconds above 0, at most {MODEL_TIMEOUT_S_MAX:g}")

    def _bot(self) -> Bot:
        channels = self._document.platform.channels
        for name, wanted in channels.items():
            if name != "telegram" and not _is_off(wanted):
                self._states[name[:NAME_CHARS_MAX]] = UNSUPPORTED
                self._ignore(f"platform.channels.{name}", "this runtime does not support this channel")
        path, given = "platform.channels.telegram", channels.get("telegram", {})
        telegram = self._document.telegram
        try:
            settings = msgspec.convert(given, TelegramSettings)
        except msgspec.ValidationError as error:
            # Half understood, it could let in people who are to be kept out.
            self._ignore(path, f"the channel stays off: {error}")
            return Bot(Telegram(base_url=telegram.base_url), refusal_reason=f"{path} cannot be used: {error}")
        self._ignore_unknown(path, given, TelegramSettings)
        token = (settings.bot_token or telegram.bot_token) if settings.enabled else None
        return Bot(Telegram(bot_token=token, base_url=telegram.base_url), settings.allowed_user_ids)

    def _webhooks(self) -> tuple[Webhook, ...]:
        webhooks: dict[str, Webhook] = {}
        for index, given in enumerate(self._document.platform.integrations):
            path = f"platform.integrations.{index}"
            if _is_off(given):
                continue
            name = integration_name((_id_of(given) or str(index))[:NAME_CHARS_MAX])
            if not (isinstance(given, dict) and cast("dict[str, Any]", given).get("type") == "webhook"):
                self._states[name] = UNSUPPORTED
                self._ignore(path, "this runtime supports only integrations of type 'webhook'")
                continue
            webhook = self._webhook(path, name, given)
            if webhook is None:
                continue
            if webhook.id in webhooks:
                self._ignore(path, f"another webhook has the id {webhook.id!r}")
            elif len(webhooks) == WEBHOOKS_MAX:
                self._ignore(path, f"an agent has at most {WEBHOOKS_MAX} webhooks")
            else:
                webhooks[webhook.id] = webhook
        return tuple(webhooks.values())

    def _webhook(self, path: str, name: str, given: Any) -> Webhook | None:
        try:
            webhook = msgspec.convert(given, Webhook)
        except msgspec.ValidationError as error:
            problem = str(error)
        else:
            problem = _url_problem(webhook.url)
            if problem is None:
                self._ignore_unknown(path, given, Webhook)
                return webhook
        self._states[name] = error_state(problem)
        self._ignore(path, problem)
        return None

    def _workflows(self) -> tuple[Workflow, ...]:
        known = {workflow.slug: workflow for workflow in self._document.workflows}
        for index, slug in enumerate(self._document.workflow_slugs):
            if slug not in known:
                self._ignore(f"workflow_slugs.{index}", f"there is no workflow {slug!r:.64}")
        return tuple(known[slug] for slug in dict.fromkeys(self._document.workflow_slugs) if slug in known)

    def _skills(self, workflows: tuple[Workflow, ...]) -> tuple[Skill, ...]:
        """The skills that are enabled, then those that workflows need."""
        wanted = enabled_skills(self._document)
        taken = (skill for workflow in workflows for skill in workflow.skills)
        loaded = load_skills(dict.fromkeys((*wanted, *taken)))
        for index, given in enumerate(self._document.platform.skills or ()):
            setting = skill_setting(given)
            if setting is None:
                reason = "a skill must be an id, or an object with id and, optionally, enabled (true or false)"
                self._ignore(f"platform.skills.{index}", reason)
            elif setting.enabled and setting.id in loaded.missing:
                self._ignore(f"platform.skills.{index}", loaded.missing.pop(setting.id))
        for reason in loaded.missing.values():
            self._ignore("skills of the preset or of a workflow", reason)
        return loaded.skills


def _is_off(given: Any) -> bool:
    return isinstance(given, dict) and cast("dict[str, Any]", given).get("enabled") is False


def _id_of(given: Any) -> str | None:
    found = cast("dict[str, Any]", given).get("id") if isinstance(given, dict) else given
    return found[:PATH_CHARS_MAX] if isinstance(found, str) else None


def _url_problem(url: str) -> str | None:
    """Why a URL must not be called, or None.

    TLS proves that the receiver is the host that the URL names, which no server in the agent's own
    networks can prove. Without TLS only the agent's own machine may be called.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # Raises if the port is invalid.
        _ = httpx.URL(url).host  # Raises if an international name is invalid.
    except (ValueError, httpx.InvalidURL):
        return "url is not a valid URL"
    if not host or parts.username is not None or not url.isprintable() or " " in url:
        return "url must be an https:// URL with a host, without user name and blanks"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return None
    return "url must begin with https:// (http:// is allowed only for the agent's own machine)"
