"""The Telegram channel: takes over what people write to a bot, has it answered, and sends each answer once.

An update is on our disk before Telegram is told to forget it, and off it just before its answer is sent: after a crash it is
answered if it was not, and an answer that may have gone out is not sent again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import NoReturn
from weakref import WeakValueDictionary

import msgspec
import structlog

from hydracore.agent.backoff import Backoff
from hydracore.agent.chat_messages import MESSAGE_MAX_CHARS, TELEGRAM_CONVERSATION
from hydracore.agent.chats import Ask, ChatError, Draining, Interrupted, OpenChat, TooManyChats
from hydracore.agent.errors import AgentError, DiskRefuses
from hydracore.agent.expressclaw.document import Telegram
from hydracore.agent.expressclaw.inbox import Inbox, Waiting
from hydracore.agent.expressclaw.telegram_api import (
    POLL_S,
    TEXT_MAX_CHARS,
    Message,
    TelegramApi,
    TelegramAway,
    TelegramBusy,
    TelegramError,
    TelegramRefused,
    Update,
    bot_id,
)
from hydracore.agent.expressclaw.wishes import Bot
from hydracore.agent.messages import ReportedError
from hydracore.reading import UNREADABLE
from hydracore.waiting import work_until

_log = structlog.get_logger(__name__)

RETRY_BASE_S = 0.5
RETRY_CAP_S = 60.0

#: Answers in the making at once.
ANSWERS_MAX = 16

#: How often one answer is tried to be sent when Telegram does not take it.
SEND_TRIES_MAX = 5

SORRY = "Sorry, I cannot answer right now. Please try again later."
NOT_ALLOWED = "I answer only people whom my owner has named. Your Telegram user id is {}."
TEXT_ONLY = "I can read text messages only."

OFF = "off"
CONNECTED = "connected"


class TelegramChannel:
    """Tell it which bot to be with `use`, then `run` it beside the rest. `open_chat` raises `ChatError`."""

    def __init__(self, inbox: Inbox, *, open_chat: Callable[[Ask], OpenChat]) -> None:
        self._inbox = inbox
        self._open_chat = open_chat
        self._wanted = Bot(Telegram())
        self._changed = asyncio.Event()
        #: `off`, `connected` or `error: ...`.
        self.state = OFF

    def use(self, bot: Bot) -> None:
        """Be this one from now on."""
        if bot != self._wanted:
            self._wanted = bot
            self._changed.set()

    @property
    def error(self) -> ReportedError | None:
        if self.state in {OFF, CONNECTED}:
            return None
        return ReportedError(code="telegram_failed", message=self.state.removeprefix("error: "))

    async def run(self) -> NoReturn:
        while True:
            self._changed.clear()
            await work_until(self._changed, self._be(self._wanted))

    async def _be(self, wanted: Bot) -> None:
        """One bot, until another one is wanted."""
        self.state = OFF
        token = wanted.telegram.bot_token
        if wanted.complaint is not None:
            self._note(TelegramRefused(wanted.complaint))
        elif token:
            bot = bot_id(token)
            if bot is not None:
                await self._poll(bot, TelegramApi(token=token, base_url=wanted.telegram.base_url), wanted)
            self._note(TelegramRefused("The bot token is not one"))
        await asyncio.Event().wait()

    async def _poll(self, bot: str, api: TelegramApi, wanted: Bot) -> NoReturn:
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        answering = _Answering(bot, api, self._inbox, self._open_chat, allowed=wanted.allowed_user_ids)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        offset = await self._inbox.next_update(bot)
                        # A poll that tries the token, or has Telegram forget something, does not wait.
                        wait_s = POLL_S if self.state == CONNECTED and offset is None else 0
                        updates = await api.updates(offset, wait_s=wait_s)
                        self.state = CONNECTED
                        if updates or offset is not None:
                            await self._take_over(bot, updates)
                        answering.begin(tasks, await self._inbox.waiting(bot))
                        backoff.reset()
                    except TelegramError as error:
                        self._note(error)
                        asked_s = error.retry_after_s if isinstance(error, TelegramBusy) else 0.0
                        await asyncio.sleep(max(backoff.next_s(), asked_s))
                    except sqlite3.OperationalError as error:
                        # Telegram keeps what the disk did not take, and the next poll brings it again.
                        self._note(DiskRefuses(str(error)))
                        await asyncio.sleep(backoff.next_s())
        finally:
            await api.aclose()

    async def _take_over(self, bot: str, updates: list[Update]) -> None:
        """Keep these, and have Telegram forget them with the next poll. Then no number is kept: after a week of silence
        Telegram draws a new one, perhaps a lower, and would take the old one as leave to forget what it has not told."""
        contents = {update.update_id: bytes(update.message).decode() for update in updates if update.message}
        next_update = max((update.update_id for update in updates), default=-1) + 1
        await self._inbox.take_over(bot, contents, next_update=next_update or None)

    def _note(self, error: AgentError) -> None:
        state = f"error: {error}"
        if state != self.state:
            _log.warning("telegram_failed", reason=str(error))
        self.state = state


class _Answering:
    """The answers of one bot. `allowed`: the users who get one; None is everybody."""

    def __init__(
        self,
        bot: str,
        api: TelegramApi,
        inbox: Inbox,
        open_chat: Callable[[Ask], OpenChat],
        *,
        allowed: tuple[int, ...] | None,
    ) -> None:
        self._allowed = allowed
        self._bot = bot
        self._api = api
        self._inbox = inbox
        self._open_chat = open_chat
        self._begun: set[int] = set()
        self._free = asyncio.Semaphore(ANSWERS_MAX)
        self._orders: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    def begin(self, tasks: asyncio.TaskGroup, waiting: list[Waiting]) -> None:
        """Answer what is not being answered yet; messages of one chat in their order."""
        begun = self._begun
        # What no longer waits is answered; to know that it was begun is needed no more.
        self._begun = {update_id for update_id, _ in waiting}
        for update_id, content in waiting:
            if update_id not in begun:
                tasks.create_task(self._answer(update_id, content))

    async def _answer(self, update_id: int, content: str) -> None:
        try:
            message = msgspec.json.decode(content, type=Message)
        except UNREADABLE:
            _log.warning("telegram_message_odd", bot=self._bot, update_id=update_id)
            await self._inbox.done(self._bot, update_id)
            return
        async with self._order(message.chat.id), self._free:
            text = await self._text_for(update_id, message)
            if text is None:
                return  # It stays in the inbox, for whoever runs next.
            # From here on it is not answered again, as the answer may get through though we do not learn of it.
            await self._inbox.done(self._bot, update_id)
            for start in range(0, len(text), TEXT_MAX_CHARS):
                await self._send(message.chat.id, text[start : start + TEXT_MAX_CHARS])

    def _order(self, chat_id: int) -> asyncio.Lock:
        lock = self._orders.get(chat_id)
        if lock is None:
            lock = self._orders[chat_id] = asyncio.Lock()
        return lock

    async def _text_for(self, update_id: int, message: Message) -> str | None:
        if self._allowed is not None and (message.sender is None or message.sender.id not in self._allowed):
            # Their number is what the owner needs to let them in.
            return NOT_ALLOWED.format("unknown" if message.sender is None else message.sender.id)
        if not message.text:
            return TEXT_ONLY
        end_user = None if message.sender is None else f"telegram:{message.sender.id}"
        ask = Ask(
            message=message.text[:MESSAGE_MAX_CHARS],
            conversation_id=f"{TELEGRAM_CONVERSATION}{message.chat.id}",
            end_user=end_user,
            channel="telegram",
            key=f"telegram:{self._bot}:{update_id}",
        )
        try:
            chat = self._open_chat(ask)
            with chat.listening():
                return (await chat.answer()).message
        except (Draining, Interrupted):
            return None
        except TooManyChats:
            return SORRY
        except ChatError as error:
            _log.warning("telegram_unanswered", code=error.code)
            return SORRY

    async def _send(self, chat_id: int, text: str) -> None:
        """Until Telegram has it, may have it, or will not have it."""
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        for _ in range(SEND_TRIES_MAX):
            try:
                await self._api.send(chat_id, text)
            except TelegramBusy as error:
                await asyncio.sleep(max(backoff.next_s(), error.retry_after_s))
            except TelegramAway as error:
                if not error.again:
                    break
                await asyncio.sleep(backoff.next_s())
            except TelegramRefused:
                break
            else:
                return
        _log.warning("telegram_answer_lost", bot=self._bot)
