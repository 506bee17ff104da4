"""The setup of chats: a document, read and prepared once. A chat keeps the setup that it began with."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgspec

from hydracore.agent.expressclaw.context_window import ChatMessage, merge_same_role
from hydracore.agent.expressclaw.document import Document, read_document
from hydracore.agent.expressclaw.features import Features, read_features
from hydracore.agent.expressclaw.money import Tokens, cost_usd
from hydracore.agent.expressclaw.prompt import system_prompt
from hydracore.agent.runtime import RuntimeConfig
from hydracore.money import decimal_text


class Setup(NamedTuple):
    """`digest` identifies the configuration."""

    document: Document
    features: Features
    digest: str

    def __repr__(self) -> str:
        return f"Setup({self.document!r})"

    def messages(self, past: list[ChatMessage], message: str, *, today: str) -> list[ChatMessage]:
        """The messages to send to a model: the system prompt, the chosen past messages, the new message."""
        prompt = system_prompt(self.document, self.features.skills, self.features.workflows, today=today)
        system = [ChatMessage("system", prompt)] if prompt else []
        return [*system, *merge_same_role([*past, ChatMessage("user", message)])]

    def cost(self, model: str, tokens: Tokens) -> str:
        return decimal_text(cost_usd(model, tokens, self.document.prices))


def make_setup(config: RuntimeConfig) -> Setup:
    """Raises `RuntimeFailed` when the document cannot be used."""
    document = read_document(config.settings)
    return Setup(document, read_features(document), _digest(config.version, config.settings))


def _digest(version: int, settings: dict[str, Any]) -> str:
    encoded = msgspec.json.encode([version, settings], order="sorted")
    return hashlib.sha256(encoded).hexdigest()
