"""Chooses the past messages for a model: the end of the conversation, and older ones that are like the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from hydracore.agent.chats import Ask
from hydracore.agent.expressclaw.connections import CONNECTED, OFF, READY, failing, reason_of
from hydracore.agent.expressclaw.embedding_client import EmbeddingCall, Vector, cosine_similarity, embed
from hydracore.agent.expressclaw.memories import OlderMessage
from hydracore.agent.expressclaw.memory import MEMORY_MAX_MESSAGES, ChatMessage, message_tokens, remembered, text_tokens
from hydracore.agent.expressclaw.model_client import ModelClient, ModelTrouble
from hydracore.agent.expressclaw.money import Tokens
from hydracore.agent.expressclaw.setup import Setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.turns import OpenTurn
from hydracore.agent.messages import ReportedError, UsageEntry

_log = structlog.get_logger(__name__)

#: The longest that a chat waits for embeddings before it goes on without, and the pause after a failure.
EMBED_MAX_S = 5.0
PAUSE_S = 60.0

#: The most older messages that are embedded in one call, and the most characters of each: models read
#: about 8000 tokens.
EMBEDDED_AT_ONCE = 64
EMBEDDED_MAX_CHARS = 8000

#: The most messages and tokens that are recalled, the most characters of each message, and its least
#: cosine similarity to the new one.
RECALLED_MAX_MESSAGES = 6
RECALLED_MAX_TOKENS = 2000
RECALLED_MAX_CHARS = 1000
LIKENESS_MIN = 0.25

_HEAD = "(Said earlier in this conversation; it may be of use for what follows.)"


class _Asked(NamedTuple):
    """A new message, and the embedding model that it is compared by."""

    ask: Ask
    setup: Setup
    model: str
    conversation_id: str

    def spent(self, tokens: Tokens, *, at_ms: int) -> UsageEntry:
        return UsageEntry(
            at_ms=at_ms,
            model=self.model,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cost_usd=self.setup.cost(self.model, tokens),
            end_user=self.ask.end_user,
            channel=self.ask.channel,
            conversation_id=self.conversation_id,
        )


class Recall:
    def __init__(self, store: Store, client: ModelClient) -> None:
        self._store = store
        self._client = client
        self._model: str | None = None
        self._not_before_s = 0.0
        #: `off`, `ready`, `connected` once it worked, or `error: ...`.
        self.state = OFF

    def use(self, model: str | None) -> None:
        """Use this embedding model from now on, or none."""
        if model != self._model:
            self._model = model
            self._not_before_s = 0.0
            self.state = OFF if model is None else READY

    @property
    def error(self) -> ReportedError | None:
        reason = reason_of(self.state)
        return None if reason is None else ReportedError(code="memory_failed", message=reason)

    async def reminders(self, begun: OpenTurn, ask: Ask, setup: Setup) -> list[ChatMessage]:
        """The past messages to send. Without an embedding model, or if that fails, only the end of the conversation."""
        past = remembered(begun.past)
        model = setup.document.model_policy.embedding_model
        is_all_in_sight = len(past) == len(begun.past) < MEMORY_MAX_MESSAGES
        if not model or is_all_in_sight or asyncio.get_running_loop().time() < self._not_before_s:
            return past
        older = await self._store.memories.older(begun, kept=len(past), model=model)
        if not older:
            return past
        try:
            recalled = await self._recall(older, _Asked(ask, setup, model, begun.conversation_id))
        except ModelTrouble as trouble:
            _log.warning("memory_failed", model=model, reason=trouble.reason)
            self.state = failing(f"{model}: {trouble.reason}")
            self._not_before_s = asyncio.get_running_loop().time() + PAUSE_S
            return past
        self.state = CONNECTED
        # As a message of the user, not of the system: much of it was said by users, and must not have
        # the system's weight.
        return [*([ChatMessage("user", recalled)] if recalled else []), *past]

    async def _recall(self, older: list[OlderMessage], asked: _Asked) -> str:
        """The text of the recalled messages, empty if there are none. Raises `ModelTrouble`."""
        endpoint = asked.setup.document.model
        if endpoint.base_url is None:
            return ""
        # The latest of those without an embedding. The others follow with the next chats.
        unknown = [each for each in older if each.vector is None][-EMBEDDED_AT_ONCE:]
        texts = [text[:EMBEDDED_MAX_CHARS] for text in (asked.ask.message, *(each.said.content for each in unknown))]
        call = EmbeddingCall(endpoint.base_url, endpoint.api_key, asked.model, texts, EMBED_MAX_S)
        estimate = sum(map(text_tokens, texts))
        try:
            embedded = await embed(self._client, call)
        except (ModelTrouble, asyncio.CancelledError) as end:
            if not (isinstance(end, ModelTrouble) and end.is_free):
                await self._keep({}, asked, prompt_tokens=estimate)
            raise
        wanted, *vectors = embedded.vectors
        learnt = {each.message_id: vector for each, vector in zip(unknown, vectors, strict=True)}
        await self._keep(learnt, asked, prompt_tokens=embedded.prompt_tokens or estimate)
        # In a thread, as half a million multiplications would block every other chat.
        return await asyncio.to_thread(_most_like, wanted, older, learnt)

    async def _keep(self, learnt: Mapping[int, Vector], asked: _Asked, *, prompt_tokens: int) -> None:
        """Store embeddings and what they have cost."""
        spent = asked.spent(Tokens(prompt_tokens, 0), at_ms=self._store.now_ms())
        await self._store.memories.store(asked.model, learnt, spent=spent)
        self._store.ledger.news.set()


def _most_like(wanted: Vector, older: Sequence[OlderMessage], learnt: Mapping[int, Vector]) -> str:
    """The messages most similar to `wanted`, as one text in the order in which they were said; empty if none is."""
    likes: list[tuple[float, int]] = []
    for index, each in enumerate(older):
        vector = each.vector if each.vector is not None else learnt.get(each.message_id)
        if vector is not None and len(vector) == len(wanted):
            likes.append((cosine_similarity(wanted, vector), index))
    best = sorted((like, index) for like, index in likes if like >= LIKENESS_MIN)[-RECALLED_MAX_MESSAGES:]
    left, chosen = RECALLED_MAX_TOKENS, list[int]()
    for _, index in reversed(best):
        left -= message_tokens(_shortened(older[index].said))
        if left >= 0:
            chosen.append(index)
    lines = [f"{said.role}: {said.content}" for said in (_shortened(older[index].said) for index in sorted(chosen))]
    return "\n".join([_HEAD, *lines]) if lines else ""


def _shortened(said: ChatMessage) -> ChatMessage:
    return ChatMessage(said.role, said.content[:RECALLED_MAX_CHARS])
