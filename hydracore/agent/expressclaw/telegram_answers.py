"""The answers of one Telegram bot: whom it answers, what, and in what order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import msgspec
import structlog

from hydracore.agent.chat_messages import MESSAGE_CHARS_MAX, TELEGRAM_CONVERSATION
from hydracore.agent.chats import ChatError, Draining, Interrupted, OpenChat, Question, TooManyChats
from hydracore.agent.errors import DiskWriteFailed
from hydracore.agent.expressclaw.inbox import Inbox, StoredUpdate
from hydracore.agent.expressclaw.telegram_api import Message, TelegramApi
from hydracore.agent.expressclaw.telegram_delivery import Deliveries, UnsentAnswer, unsent_inbox
from hydracore.json_input import JSON_ERRORS

_log = structlog.get_logger(__name__)

#: The most answers that are made at once.
ANSWERS_MAX = 16

#: The most messages without an answer and unsent answers, together. Beyond that, updates are left with Telegram.
BACKLOG_MAX = 1000

SORRY = "Sorry, I cannot answer right now. Please try again later."
NOT_ALLOWED = "I answer only people whom my owner has allowed. Your Telegram user id is {}."
TEXT_ONLY = "I can read text messages only."


class TelegramAnswers:
    """The answers of one bot. `allowed`: the users who get one; None is everybody."""

    def __init__(
        self,
        bot: str,
        api: TelegramApi,
        inbox: Inbox,
        open_chat: Callable[[Question], OpenChat],
        *,
        allowed: tuple[int, ...] | None,
    ) -> None:
        self._allowed = allowed
        self._bot = bot
        self._deliveries = Deliveries(bot, api, inbox)
        self._open_chat = open_chat
        self._begun_ids: set[int] = set()
        self._unsent_count = 0
        self._answer_slots = asyncio.Semaphore(ANSWERS_MAX)
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @property
    def disk_failure(self) -> DiskWriteFailed | None:
        """The refusal of the disk that keeps answers from being sent, or None."""
        return self._deliveries.disk_failure

    @property
    def has_room(self) -> bool:
        return len(self._begun_ids) + self._unsent_count < BACKLOG_MAX

    def answer_new(self, tasks: asyncio.TaskGroup, waiting: list[StoredUpdate]) -> None:
        """Answer the waiting messages that are not being answered yet, those of one chat in order."""
        begun = self._begun_ids
        # The ids of updates that are no longer stored are dropped: those updates are answered.
        self._begun_ids = {update_id for update_id, _ in waiting}
        for update_id, content in waiting:
            if update_id not in begun:
                tasks.create_task(self._answer(update_id, content))

    def resend_unsent(self, tasks: asyncio.TaskGroup, unsent: list[StoredUpdate]) -> None:
        """Send the answers that an earlier run did not send. Call it once, before `answer_new`.

        Later the inbox also has answers that this run is still sending.
        """
        for update_id, content in unsent:
            tasks.create_task(self._resend(update_id, content))

    async def _answer(self, update_id: int, content: str) -> None:
        try:
            message = msgspec.json.decode(content, type=Message)
        except JSON_ERRORS:
            await self._discard_unreadable(self._bot, update_id)
            return
        async with self._chat_lock(message.chat.id):
            async with self._answer_slots:
                text = await self._text_for(update_id, message)
            if text is not None:
                with self._counted():
                    await self._deliveries.deliver(self._bot, update_id, UnsentAnswer(message.chat.id, text))

    async def _resend(self, update_id: int, content: str) -> None:
        inbox_id = unsent_inbox(self._bot)
        try:
            unsent = msgspec.json.decode(content, type=UnsentAnswer)
        except JSON_ERRORS:
            await self._discard_unreadable(inbox_id, update_id)
            return
        with self._counted():
            async with self._chat_lock(unsent.chat_id):
                await self._deliveries.deliver(inbox_id, update_id, unsent)

    @contextmanager
    def _counted(self) -> Generator[None]:
        """Count an answer as unsent within this block."""
        self._unsent_count += 1
        try:
            yield
        finally:
            self._unsent_count -= 1

    async def _discard_unreadable(self, inbox_id: str, update_id: int) -> None:
        _log.warning("telegram_message_odd", bot=self._bot, update_id=update_id)
        # If the disk refuses, the next run passes over it again.
        await self._deliveries.delete(inbox_id, update_id)

    def _chat_lock(self, chat_id: int) -> asyncio.Lock:
        return self._locks.setdefault(chat_id, asyncio.Lock())

    async def _text_for(self, update_id: int, message: Message) -> str | None:
        """The text to answer with, or None if the message is to stay on disk for the next run."""
        if self._allowed is not None and (message.sender is None or message.sender.id not in self._allowed):
            # Their number is what the owner needs to let them in.
            return NOT_ALLOWED.format("unknown" if message.sender is None else message.sender.id)
        if not message.text:
            return TEXT_ONLY
        end_user = None if message.sender is None else f"telegram:{message.sender.id}"
        question = Question(
            message=message.text[:MESSAGE_CHARS_MAX],
            conversation_id=f"{TELEGRAM_CONVERSATION}{message.chat.id}",
            end_user=end_user,
            channel="telegram",
            key=f"telegram:{self._bot}:{update_id}",
        )
        try:
            chat = self._open_chat(question)
            with chat.listening():
                return (await chat.answer()).message
        except (Draining, Interrupted):
            return None
        except TooManyChats:
            return SORRY
        except ChatError as error:
            _log.warning("telegram_unanswered", code=error.code)
            return SORRY
