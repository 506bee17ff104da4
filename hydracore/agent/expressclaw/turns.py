"""Stores conversations by turns: the question before a model is asked, the answer and its cost in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from hydracore.agent.chat_messages import (
    ChatAnswer,
    Conversation,
    ConversationMessage,
    ConversationSummary,
    TokenUsage,
)
from hydracore.agent.chats import KeyMismatch, Question
from hydracore.agent.expressclaw.context_window import CONTEXT_MESSAGES_MAX, ChatMessage
from hydracore.agent.expressclaw.database import Database
from hydracore.agent.expressclaw.ledger import add_entries
from hydracore.agent.expressclaw.notices import add_notices
from hydracore.agent.expressclaw.times import utc_datetime
from hydracore.agent.messages import Channel, UsageEntry
from hydracore.clock import NowMs
from hydracore.sql import named_blocks

_SQL = named_blocks(Path(__file__).with_name("turns.sql"))

#: The most turns kept per conversation. Beyond that, the oldest are deleted.
TURNS_MAX = 1000

#: The most conversations kept, and how many of those used longest ago are deleted at once beyond
#: that. Several at once, as finding them takes the most time.
CONVERSATIONS_MAX = 10_000
DELETED_AT_ONCE = 10

#: The most bytes that the shown messages of a conversation take as JSON. Of a longer one, the newest
#: messages are shown.
SHOWN_BYTES_MAX = 6 * 1024 * 1024

#: The most characters of the latest message that a list shows.
PREVIEW_CHARS = 120


class OpenTurn(NamedTuple):
    """A turn that is on disk. `past`: the messages before it, in order."""

    turn_id: int
    conversation_id: str
    past: list[ChatMessage]


class Reply(NamedTuple):
    """A model's answer, which may be partial."""

    text: str
    model: str
    usage: TokenUsage

    @classmethod
    def of(cls, text: str, spent: UsageEntry) -> Reply:
        """`spent`: what it has cost."""
        usage = TokenUsage(
            prompt_tokens=spent.prompt_tokens, completion_tokens=spent.completion_tokens, cost_usd=spent.cost_usd
        )
        return cls(text, spent.model, usage)


class UnfinishedTurn(NamedTuple):
    """A turn that is still open on disk, because the process died or the disk refused its end.
    `model`: the model that was asked, if any; `partial`: what it had said."""

    turn_id: int
    conversation_id: str
    channel: Channel
    end_user: str | None
    model: str | None
    prompt_tokens: int | None
    partial: str


class Turns:
    def __init__(self, database: Database, *, now_ms: NowMs) -> None:
        self._database = database
        self._now_ms = now_ms

    async def begin(
        self,
        question: Question,
        *,
        conversation_id: str,
        digest: str,
        estimate: Callable[[UnfinishedTurn], UsageEntry | None],
        check_budget: Callable[[sqlite3.Connection], None],
    ) -> OpenTurn | ChatAnswer:
        """Store the question, and open a turn for it. If its key has an answer already, return that instead.

        `conversation_id`: the id of the conversation if `question` begins one. An earlier turn under the same
        key that has no complete answer is deleted. If it was left open, it is metered by `estimate`, as
        nobody works on it any more. `check_budget` raises `BudgetSpent`. Raises `KeyMismatch`, too.
        """
        at_ms = self._now_ms()

        def work(db: sqlite3.Connection) -> OpenTurn | ChatAnswer:
            conversation = question.conversation_id or conversation_id
            earlier = db.execute(_SQL["by_key"], {"key": question.key}).fetchone() if question.key is not None else None
            if earlier is not None:
                turn_id, state, earlier_digest, conversation, *answer = earlier
                if earlier_digest != digest:
                    raise KeyMismatch("The idempotency key was used for another request")
                if state == "done":
                    return _answer(conversation, tuple(answer))
                left = db.execute(_SQL["unfinished"], {"turn_id": turn_id}).fetchone()
                spent = estimate(UnfinishedTurn(*left)) if left is not None else None
                add_entries(db, [] if spent is None else [spent])
                db.execute(_SQL["delete"], {"turn_id": turn_id})
            check_budget(db)
            return _open(db, question, conversation, digest=digest, at_ms=at_ms)

        return await self._database.run(work)

    async def record_call(self, turn_id: int, model: str, prompt_tokens: int, *, spent: UsageEntry | None) -> None:
        """Note that `model` is about to be asked, and meter `spent`, which is what the call before it has cost."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_SQL["record_call"], {"turn_id": turn_id, "model": model, "prompt_tokens": prompt_tokens})
            add_entries(db, [] if spent is None else [spent])

        await self._database.run(work)

    async def save_partials(self, partials: Mapping[int, str]) -> None:
        """Store partial answers, by turn id."""

        def work(db: sqlite3.Connection) -> None:
            rows = [{"turn_id": turn_id, "partial": partial} for turn_id, partial in partials.items()]
            db.executemany(_SQL["save_partial"], rows)

        await self._database.run(work)

    async def close(
        self,
        turn: OpenTurn | UnfinishedTurn,
        state: Literal["done", "cut", "failed"],
        *,
        reply: Reply | None,
        spent: UsageEntry | None,
        notices: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Close the turn: store its answer, if it has one, what the last call has cost, and the
        notices for integrations, in one transaction."""
        at_ms = self._now_ms()

        def work(db: sqlite3.Connection) -> None:
            # The turn may have been trimmed after later ones of its conversation. Its cost is stored all the same.
            is_there = db.execute(_SQL["close"], {"turn_id": turn.turn_id, "state": state}).rowcount == 1
            if reply is not None and is_there:
                _add_message(db, turn, "assistant", reply.text, at_ms=at_ms, reply=reply)
            db.execute(_SQL["touch_conversation"], {"conversation_id": turn.conversation_id, "at_ms": at_ms})
            db.execute(_SQL["trim"], {"conversation_id": turn.conversation_id, "keep": TURNS_MAX})
            add_entries(db, [] if spent is None else [spent])
            add_notices(db, notices)

        await self._database.run(work)

    async def unfinished(self) -> list[UnfinishedTurn]:
        """All open turns. Call it before the first turn begins: then nobody works on them any more."""
        values = {"turn_id": None}
        return await self._database.run_cancellable(
            lambda db: [UnfinishedTurn(*row) for row in db.execute(_SQL["unfinished"], values)]
        )

    async def latest_conversations(self, limit: int) -> tuple[ConversationSummary, ...]:
        values = {"limit": limit, "preview": PREVIEW_CHARS}
        rows = await self._database.run_cancellable(
            lambda db: db.execute(_SQL["latest_conversations"], values).fetchall()
        )
        return tuple(
            ConversationSummary(
                id=one,
                created_at=utc_datetime(created),
                updated_at=utc_datetime(updated),
                message_count=count,
                preview=preview or "",
            )
            for one, created, updated, count, preview in rows
        )

    async def conversation(self, conversation_id: str) -> Conversation | None:
        values = {"conversation_id": conversation_id}

        def work(db: sqlite3.Connection) -> Conversation | None:
            found = db.execute(_SQL["conversation"], values).fetchone()
            if found is None:
                return None
            rows = db.execute(_SQL["messages"], {**values, "bytes_max": SHOWN_BYTES_MAX})
            messages = tuple(_message(row) for row in rows)
            one, created, updated = found
            return Conversation(
                id=one, created_at=utc_datetime(created), updated_at=utc_datetime(updated), messages=messages
            )

        return await self._database.run_cancellable(work)


def _open(db: sqlite3.Connection, question: Question, conversation: str, *, digest: str, at_ms: int) -> OpenTurn:
    db.execute(_SQL["touch_conversation"], {"conversation_id": conversation, "at_ms": at_ms})
    past = db.execute(
        _SQL["latest_messages"], {"conversation_id": conversation, "limit": CONTEXT_MESSAGES_MAX}
    ).fetchall()
    values = {
        "conversation_id": conversation,
        "channel": question.channel,
        "end_user": question.end_user,
        "key": question.key,
        "request_digest": digest,
    }
    turn_id = db.execute(_SQL["open"], values).fetchone()[0]
    turn = OpenTurn(turn_id, conversation, [ChatMessage(role, content) for role, content in past])
    _add_message(db, turn, "user", question.message, at_ms=at_ms, reply=None)
    db.execute(_SQL["delete_oldest_conversations"], {"keep": CONVERSATIONS_MAX, "at_once": DELETED_AT_ONCE})
    return turn


def _add_message(
    db: sqlite3.Connection, turn: OpenTurn | UnfinishedTurn, role: str, content: str, *, at_ms: int, reply: Reply | None
) -> None:
    values: dict[str, Any] = {
        "turn_id": turn.turn_id,
        "conversation_id": turn.conversation_id,
        "role": role,
        "content": content,
        "created_ms": at_ms,
        "model": reply.model if reply else None,
        "prompt_tokens": reply.usage.prompt_tokens if reply else None,
        "completion_tokens": reply.usage.completion_tokens if reply else None,
        "cost_usd": reply.usage.cost_usd if reply else None,
    }
    db.execute(_SQL["add_message"], values)


def _answer(conversation_id: str, row: tuple[Any, ...]) -> ChatAnswer:
    content, model, *figures = row
    return ChatAnswer(conversation_id=conversation_id, message=content, model=model, usage=_usage(*figures))


def _message(row: tuple[Any, ...]) -> ConversationMessage:
    role, content, created_ms, model, *figures = row
    usage = _usage(*figures) if model is not None else None
    return ConversationMessage(
        role=role, content=content, created_at=utc_datetime(created_ms), model=model, usage=usage
    )


def _usage(prompt: int, completion: int, cost: str) -> TokenUsage:
    return TokenUsage(prompt_tokens=prompt, completion_tokens=completion, cost_usd=cost)
