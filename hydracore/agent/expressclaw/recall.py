"""Chooses the past messages for a model: the end of the conversation, and older ones that are like the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from hydracore.agent.chats import Question
from hydracore.agent.expressclaw.connections import CONNECTED, OFF, READY, error_reason, error_state
from hydracore.agent.expressclaw.context_window import (
    CONTEXT_MESSAGES_MAX,
    ChatMessage,
    estimate_message_tokens,
    estimate_text_tokens,
    latest_that_fit,
)
from hydracore.agent.expressclaw.embedding_client import EmbeddingCall, Vector, cosine_similarity, embed
from hydracore.agent.expressclaw.embedding_store import OlderMessage
from hydracore.agent.expressclaw.model_client import ModelCallError, ModelClient
from hydracore.agent.expressclaw.money import Tokens
from hydracore.agent.expressclaw.setup import Setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.turns import OpenTurn
from hydracore.agent.messages import ReportedError, UsageEntry

_log = structlog.get_logger(__name__)

#: The longest that a chat waits for embeddings before it goes on without, and the pause after a failure.
EMBED_TIMEOUT_S = 5.0
PAUSE_AFTER_FAILURE_S = 60.0

#: The most older messages that are embedded in one call, and the most characters of each: models read
#: about 8000 tokens.
EMBEDDED_PER_CALL_MAX = 64
EMBEDDED_CHARS_MAX = 8000

#: The most messages and tokens that are recalled, the most characters of each message, and its least
#: cosine similarity to the new one.
RECALLED_MESSAGES_MAX = 6
RECALLED_TOKENS_MAX = 2000
RECALLED_CHARS_MAX = 1000
SIMILARITY_MIN = 0.25

_HEAD = "(Said earlier in this conversation; it may be of use for what follows.)"


class _RecallRequest(NamedTuple):
    """A new message, and the embedding model that it is compared by."""

    question: Question
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
            end_user=self.question.end_user,
            channel=self.question.channel,
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
        reason = error_reason(self.state)
        return None if reason is None else ReportedError(code="memory_failed", message=reason)

    async def past_messages(self, open_turn: OpenTurn, question: Question, setup: Setup) -> list[ChatMessage]:
        """The past messages to send. Without an embedding model, or if that fails, only the end of the conversation."""
        past = latest_that_fit(open_turn.past)
        model = setup.document.model_policy.embedding_model
        is_all_in_sight = len(past) == len(open_turn.past) < CONTEXT_MESSAGES_MAX
        if not model or is_all_in_sight or asyncio.get_running_loop().time() < self._not_before_s:
            return past
        older = await self._store.embeddings.older_messages(open_turn, kept=len(past), model=model)
        if not older:
            return past
        try:
            recalled = await self._recall(older, _RecallRequest(question, setup, model, open_turn.conversation_id))
        except ModelCallError as error:
            _log.warning("memory_failed", model=model, reason=error.reason)
            self.state = error_state(f"{model}: {error.reason}")
            self._not_before_s = asyncio.get_running_loop().time() + PAUSE_AFTER_FAILURE_S
            return past
        self.state = CONNECTED
        # As a message of the user, not of the system: much of it was said by users, and must not have
        # the system's weight.
        return [*([ChatMessage("user", recalled)] if recalled else []), *past]

    async def _recall(self, older: list[OlderMessage], request: _RecallRequest) -> str:
        """The text of the recalled messages, empty if there are none. Raises `ModelCallError`."""
        endpoint = request.setup.document.model
        if endpoint.base_url is None:
            return ""
        # The latest of those without an embedding. The others follow with the next chats.
        unembedded = [each for each in older if each.vector is None][-EMBEDDED_PER_CALL_MAX:]
        texts = [
            text[:EMBEDDED_CHARS_MAX]
            for text in (request.question.message, *(each.message.content for each in unembedded))
        ]
        call = EmbeddingCall(endpoint.base_url, endpoint.api_key, request.model, texts, EMBED_TIMEOUT_S)
        estimate = sum(map(estimate_text_tokens, texts))
        try:
            embedded = await embed(self._client, call)
        except (ModelCallError, asyncio.CancelledError) as end:
            if not (isinstance(end, ModelCallError) and end.is_free):
                await self._store_embeddings({}, request, prompt_tokens=estimate)
            raise
        wanted, *vectors = embedded.vectors
        new_vectors = {each.message_id: vector for each, vector in zip(unembedded, vectors, strict=True)}
        await self._store_embeddings(new_vectors, request, prompt_tokens=embedded.prompt_tokens or estimate)
        # In a thread, as half a million multiplications would block every other chat.
        return await asyncio.to_thread(_most_similar, wanted, older, new_vectors)

    async def _store_embeddings(
        self, new_vectors: Mapping[int, Vector], request: _RecallRequest, *, prompt_tokens: int
    ) -> None:
        """Store embeddings and what they have cost."""
        spent = request.spent(Tokens(prompt_tokens, 0), at_ms=self._store.now_ms())
        await self._store.embeddings.store(request.model, new_vectors, spent=spent)
        self._store.ledger.entries_added.set()


def _most_similar(wanted: Vector, older: Sequence[OlderMessage], new_vectors: Mapping[int, Vector]) -> str:
    """The messages most similar to `wanted`, as one text in the order in which they were said; empty if none is."""
    similarities: list[tuple[float, int]] = []
    for index, each in enumerate(older):
        vector = each.vector if each.vector is not None else new_vectors.get(each.message_id)
        if vector is not None and len(vector) == len(wanted):
            similarities.append((cosine_similarity(wanted, vector), index))
    best = sorted((similarity, index) for similarity, index in similarities if similarity >= SIMILARITY_MIN)[
        -RECALLED_MESSAGES_MAX:
    ]
    left, chosen = RECALLED_TOKENS_MAX, list[int]()
    for _, index in reversed(best):
        left -= estimate_message_tokens(_shortened(older[index].message))
        if left >= 0:
            chosen.append(index)
    lines = [
        f"{message.role}: {message.content}"
        for message in (_shortened(older[index].message) for index in sorted(chosen))
    ]
    return "\n".join([_HEAD, *lines]) if lines else ""


def _shortened(message: ChatMessage) -> ChatMessage:
    return ChatMessage(message.role, message.content[:RECALLED_CHARS_MAX])
