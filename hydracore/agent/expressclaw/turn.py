"""One turn: asks the models of the policy in order until one answers, and stores the answer and what it has cost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Literal, NamedTuple

import structlog

from hydracore.agent.chat_messages import ChatAnswer
from hydracore.agent.chats import ModelFailed, ModelTimeout, OpenChat, Question
from hydracore.agent.expressclaw.context_window import ChatMessage, estimate_message_tokens, estimate_text_tokens
from hydracore.agent.expressclaw.model_client import (
    ModelAnswer,
    ModelCall,
    ModelCallError,
    ModelCallFailed,
    ModelCallTimedOut,
    ModelClient,
)
from hydracore.agent.expressclaw.money import Tokens
from hydracore.agent.expressclaw.recall import Recall
from hydracore.agent.expressclaw.setup import Setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.times import utc_day
from hydracore.agent.expressclaw.turns import OpenTurn, Reply
from hydracore.agent.expressclaw.webhooks import chat_done_notice
from hydracore.agent.messages import UsageEntry

_log = structlog.get_logger(__name__)

#: The longest that all models together may take to the first word.
FIRST_WORD_TIMEOUT_S = 90.0


class _FailedCall(NamedTuple):
    model: str
    error: ModelCallError


class Turn:
    """Call `run` once, after the turn has begun on disk. However it ends, the turn is closed on disk."""

    def __init__(
        self,
        open_turn: OpenTurn,
        question: Question,
        *,
        chat: OpenChat,
        setup: Setup,
        client: ModelClient,
        recall: Recall,
        store: Store,
    ) -> None:
        self._open_turn = open_turn
        self._question = question
        self._chat = chat
        self._setup = setup
        self._client = client
        self._store = store
        self._recall = recall
        self._messages: list[ChatMessage] = []
        self._prompt_tokens = 0
        self._model = ""
        self._call: ModelAnswer | None = None
        self._said: list[str] = []

    @property
    def id(self) -> int:
        return self._open_turn.turn_id

    @property
    def partial(self) -> str:
        """What the present model has said so far."""
        return "".join(self._said)

    async def run(self) -> ChatAnswer:
        """Raises `ModelFailed`, `ModelTimeout` and `BudgetSpent`; on cancellation the partial answer is kept."""
        try:
            await self._prepare_messages()
            await self._ask_models()
        except BaseException:
            # A partial answer is kept, as somebody may have seen it. Without one, only the question is kept.
            await self._close("cut" if self._said else "failed")
            raise
        reply = await self._close("done")
        assert reply is not None
        return self._answer(reply)

    async def _prepare_messages(self) -> None:
        past = await self._recall.past_messages(self._open_turn, self._question, self._setup)
        self._messages = self._setup.messages(past, self._question.message, today=utc_day(self._store.now_ms()))
        self._prompt_tokens = sum(map(estimate_message_tokens, self._messages))

    async def _ask_models(self) -> None:
        """Ask models until one has answered. Raises `ModelFailed`, `ModelTimeout` and `BudgetSpent`."""
        policy, model = self._setup.document.model_policy, self._setup.document.model
        if model.base_url is None or not policy.models:
            raise ModelFailed("No model is configured")
        deadline_s = asyncio.get_running_loop().time() + FIRST_WORD_TIMEOUT_S
        silence_s = self._setup.document.platform.model_timeout_s
        failures: list[_FailedCall] = []
        for name in policy.models:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if failures and left_s <= 0:
                break
            call = ModelCall(
                base_url=model.base_url,
                api_key=model.api_key,
                model=name,
                messages=self._messages,
                temperature=policy.temperature,
                max_tokens=policy.max_tokens,
                first_word_s=min(silence_s, left_s),
                next_word_s=silence_s,
            )
            try:
                await self._ask_model(call)
            except ModelCallError as error:
                _log.warning("model_failed", model=name, reason=error.reason)
                failures.append(_FailedCall(name, error))
                if not self._chat.retract():
                    raise _as_chat_error(failures[-1:]) from None
            else:
                return
        raise _as_chat_error(failures)

    async def _ask_model(self, call: ModelCall) -> None:
        """Raises `ModelCallError` and `BudgetSpent`."""
        spent = self._spent()
        await self._record_call(call.model, spent)
        if spent is not None:
            # The model before it has failed, and may have used up the budget.
            await self._store.ledger.check_budget(self._setup.document)
        self._call = self._client.ask(call)
        try:
            async with aclosing(self._call.texts()) as texts:
                async for text in texts:
                    self._said.append(text)
                    self._chat.add_text(text)
        except ModelCallError as error:
            if error.is_free:
                self._call = None
            raise
        if not self._said:
            raise ModelCallFailed("an empty answer")

    async def _record_call(self, model: str, spent: UsageEntry | None) -> None:
        """Store that `model` is about to be asked, and what the call before it has `spent`.

        Once that is on disk, the earlier call is dropped here, so that closing the turn does not meter it again.
        """
        is_on_disk = False
        try:
            await self._store.turns.record_call(self.id, model, self._prompt_tokens, spent=spent)
            is_on_disk = True
        except asyncio.CancelledError as cancelled:
            # Without a cause, the work was done all the same (see `Database.run`).
            is_on_disk = cancelled.__cause__ is None
            raise
        finally:
            if is_on_disk:
                self._model, self._call, self._said = model, None, []

    async def _close(self, state: Literal["done", "cut", "failed"]) -> Reply | None:
        spent = self._spent()
        reply = Reply.of(self.partial, spent) if self._said and spent is not None else None
        notices = self._notices(reply) if reply is not None and state == "done" else {}
        try:
            await self._store.turns.close(self._open_turn, state, reply=reply, spent=spent, notices=notices)
        finally:
            # Also if this is cancelled, as the work is done all the same (see `Database.run`).
            self._store.ledger.entries_added.set()
            if notices:
                self._store.notices.notices_added.set()
        return reply

    def _answer(self, reply: Reply) -> ChatAnswer:
        return ChatAnswer(
            conversation_id=self._open_turn.conversation_id, message=reply.text, model=reply.model, usage=reply.usage
        )

    def _notices(self, reply: Reply) -> dict[str, str]:
        """The notice of the answered question for each webhook, by the webhook's id."""
        at_ms, channel = self._store.now_ms(), self._question.channel
        return {
            webhook.id: chat_done_notice(
                self._answer(reply), notice_id=self._store.new_id(), at_ms=at_ms, channel=channel
            )
            for webhook in self._setup.features.webhooks
        }

    def _spent(self) -> UsageEntry | None:
        """What the present call has cost, by the endpoint's figures or, if it ended before they came, by our estimate.

        None if there is no call that the endpoint may charge. A call that was given up before its first
        word is charged: the endpoint may be working on it, and leaving early must not evade a budget.
        """
        if self._call is None:
            return None
        tokens = self._call.tokens or Tokens(self._prompt_tokens, estimate_text_tokens(self.partial))
        return UsageEntry(
            at_ms=self._store.now_ms(),
            model=self._model,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cost_usd=self._setup.cost(self._model, tokens),
            end_user=self._question.end_user,
            channel=self._question.channel,
            conversation_id=self._open_turn.conversation_id,
        )


def _as_chat_error(failures: list[_FailedCall]) -> ModelFailed | ModelTimeout:
    reasons = "; ".join(f"{failure.model}: {failure.error.reason}" for failure in failures)
    if all(isinstance(failure.error, ModelCallTimedOut) for failure in failures):
        return ModelTimeout(f"No model answered in time: {reasons}")
    return ModelFailed(f"No model gave an answer: {reasons}")
