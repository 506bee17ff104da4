"""The chats of one run of the runtime: one turn at a time in a conversation, any number of conversations at once."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from typing import Literal, NamedTuple, NoReturn
from weakref import WeakValueDictionary

import msgspec
import structlog

from hydracore.agent.chat_messages import ChatAnswer
from hydracore.agent.chats import (
    ChatError,
    Draining,
    Interrupted,
    KeyMismatch,
    ModelFailed,
    ModelTimeout,
    OpenChat,
    Question,
    TooManyChats,
)
from hydracore.agent.expressclaw.context_window import estimate_text_tokens
from hydracore.agent.expressclaw.ledger import check_budget
from hydracore.agent.expressclaw.model_client import ModelClient
from hydracore.agent.expressclaw.money import Tokens
from hydracore.agent.expressclaw.recall import Recall
from hydracore.agent.expressclaw.setup import Setup
from hydracore.agent.expressclaw.store import Store
from hydracore.agent.expressclaw.times import utc_day
from hydracore.agent.expressclaw.turn import Turn
from hydracore.agent.expressclaw.turns import Reply, UnfinishedTurn
from hydracore.agent.messages import UsageEntry
from hydracore.waiting import run_until

_log = structlog.get_logger(__name__)

#: The most chats at once; more are refused.
OPEN_CHATS_MAX = 300

#: The longest that an answer may take as a whole, waiting for its turn in the conversation included.
ANSWER_TIMEOUT_S = 300.0

#: Seconds between two writes of the partial answers to disk, in case the process dies.
SAVE_PARTIALS_EVERY_S = 1.0


class _ChatInProgress(NamedTuple):
    chat: OpenChat
    digest: str


class ChatService:
    """Call `recover` before the first chat, run `save_partials_periodically` as a task, and call `stop` at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = ModelClient()
        self.recall = Recall(store, self._client)
        self._tasks: dict[asyncio.Task[None], OpenChat] = {}
        self._in_progress: dict[str, _ChatInProgress] = {}
        self._turns: dict[int, Turn] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._draining = False
        self._is_interrupted = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_count(self) -> int:
        return len(self._tasks)

    def drain(self) -> None:
        """Take no new chats."""
        self._draining = True

    async def wait_until_idle(self) -> None:
        """Wait until no chat is open."""
        await self._idle.wait()

    def open(self, question: Question, setup: Setup) -> OpenChat:
        """Begin to answer, or return the chat that is under way under the same key. Raises `ChatError`.

        The caller must begin to listen before it awaits anything.
        """
        digest = _digest(question)
        if question.key is not None and (under_way := self._in_progress.get(question.key)) is not None:
            if under_way.digest != digest:
                raise KeyMismatch("The idempotency key was used for another request")
            if not under_way.chat.abandoned.is_set():
                return under_way.chat
        if self._draining:
            raise Draining("The agent is draining and accepts no new chats")
        if len(self._tasks) >= OPEN_CHATS_MAX:
            raise TooManyChats("Too many chats are open on this agent")
        chat = OpenChat()
        if question.key is not None:
            self._in_progress[question.key] = _ChatInProgress(chat, digest)
        task = asyncio.create_task(self._run(chat, question, setup, digest))
        self._tasks[task] = chat
        self._idle.clear()
        task.add_done_callback(lambda task: self._on_task_done(task, question, chat))
        return chat

    async def recover(self, setup: Setup) -> None:
        """Close the turns that were left open on disk, and meter each once, by an estimate of its call's cost."""
        for left in await self._store.turns.unfinished():
            spent = self._estimate(left, setup)
            reply = Reply.of(left.partial, spent) if left.partial and spent is not None else None
            await self._store.turns.close(left, "cut" if reply else "failed", reply=reply, spent=spent)
            _log.warning("turn_recovered", conversation_id=left.conversation_id, metered=spent is not None)
            self._store.ledger.entries_added.set()

    async def save_partials_periodically(self) -> NoReturn:
        """Write partial answers to disk every `SAVE_PARTIALS_EVERY_S`, for ever."""
        noted: dict[int, int] = {}
        is_refused = False
        while True:
            await asyncio.sleep(SAVE_PARTIALS_EVERY_S)
            partials = {turn_id: turn.partial for turn_id, turn in self._turns.items()}
            changed = {turn_id: text for turn_id, text in partials.items() if len(text) != noted.get(turn_id, 0)}
            try:
                if changed:
                    await self._store.turns.save_partials(changed)
            except sqlite3.OperationalError as error:
                # Only a crash before the next try would lose anything. Logged once, as the log may be on the same disk.
                if not is_refused:
                    _log.warning("partials_not_noted", what=str(error))
                is_refused = True
            else:
                noted = {turn_id: len(text) for turn_id, text in partials.items()}
                is_refused = False

    async def interrupt_chats(self) -> None:
        """Take no new chats, and end the open ones. When this returns, partial answers and their cost are on disk.

        The chats end as if all callers had left. They are not cancelled: a second cancellation would
        keep a chat from writing down what it cost.
        """
        self._draining = self._is_interrupted = True
        for chat in self._tasks.values():
            chat.abandoned.set()
        await self._idle.wait()

    async def stop(self) -> None:
        await self.interrupt_chats()
        await self._client.aclose()

    async def _run(self, chat: OpenChat, question: Question, setup: Setup, digest: str) -> None:
        """Answer one chat. Any failure is passed to its listeners."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await run_until(chat.abandoned, self._answer(chat, question, setup, digest))
            if self._is_interrupted:
                chat.fail(Interrupted("The runtime was stopped before the answer was complete"))
            elif not chat.is_finished:
                _log.info("chat_abandoned")
        except ChatError as error:
            chat.fail(error)
        except TimeoutError:
            chat.fail(ModelTimeout(f"The answer was not complete within {ANSWER_TIMEOUT_S:g} s"))
        except Exception:  # noqa: BLE001 - whatever it is, the listeners have to learn of it
            # The listeners come first: the log may be on the very disk that failed.
            chat.fail(ModelFailed("The agent failed; see its log for the reason"))
            _log.exception("chat_failed")

    async def _answer(self, chat: OpenChat, question: Question, setup: Setup, digest: str) -> None:
        conversation_id = question.conversation_id or self._store.new_id().hex
        # An abandoned try under the same key ends first, so that its cost is on disk before this one begins.
        async with self._lock("key", question.key or conversation_id), self._lock("conversation", conversation_id):
            today = utc_day(self._store.now_ms())
            begun = await self._store.turns.begin(
                question,
                conversation_id=conversation_id,
                digest=digest,
                estimate=lambda left: self._estimate(left, setup),
                check_budget=lambda db: check_budget(db, setup.document, today=today),
            )
            if isinstance(begun, ChatAnswer):
                return chat.finish(begun)
            turn = Turn(
                begun, question, chat=chat, setup=setup, client=self._client, recall=self.recall, store=self._store
            )
            self._turns[turn.id] = turn
            try:
                answer = await turn.run()
            finally:
                del self._turns[turn.id]
        return chat.finish(answer)

    def _lock(self, kind: Literal["key", "conversation"], name: str) -> asyncio.Lock:
        """The lock for a conversation or key. Turns of one conversation must not overlap, nor tries under one key."""
        return self._locks.setdefault((kind, name), asyncio.Lock())

    def _on_task_done(self, task: asyncio.Task[None], question: Question, chat: OpenChat) -> None:
        del self._tasks[task]
        if not self._tasks:
            self._idle.set()
        # After this chat was abandoned, another one may have begun under the same key.
        if question.key in self._in_progress and self._in_progress[question.key].chat is chat:
            del self._in_progress[question.key]

    def _estimate(self, left: UnfinishedTurn, setup: Setup) -> UsageEntry | None:
        if left.model is None:
            return None
        tokens = Tokens(left.prompt_tokens or 0, estimate_text_tokens(left.partial))
        return UsageEntry(
            at_ms=self._store.now_ms(),
            model=left.model,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cost_usd=setup.cost(left.model, tokens),
            end_user=left.end_user,
            channel=left.channel,
            conversation_id=left.conversation_id,
        )


def _digest(question: Question) -> str:
    """The digest that is stored with a key, to tell a repeated request from another one."""
    return hashlib.sha256(
        msgspec.json.encode([question.message, question.conversation_id, question.end_user])
    ).hexdigest()
